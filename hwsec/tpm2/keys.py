"""The agent's keys in the TPM: loaded for one use, by an auth value that is no one else's."""

import hashlib
from typing import Any

from ..backend import SIGNATURE_BYTES
from ..objectfile import Blob
from ..secretmem import SecretBuffer
from .codes import RC_ECC_POINT, RC_SIZE, RC_VALUE, TpmRefusal
from .objects import loaded
from .transport import Transport


def es256(signature: Any) -> bytes:
    """r || s of a TPMT_SIGNATURE; a TPM leaves leading zeros out."""
    ecdsa = signature.signature.ecdsa
    half = SIGNATURE_BYTES // 2
    return bytes(ecdsa.signatureR).rjust(half, b"\0") + bytes(ecdsa.signatureS).rjust(half, b"\0")


def sign(tpm: Transport, blob: Blob, auth: SecretBuffer, message: bytes) -> bytes:
    """TPM2_Sign (Part 3, 20.2) over SHA-256 of the message."""
    t = tpm.t
    scheme = t.TPMT_SIG_SCHEME(scheme=t.TPM2_ALG.NULL)  # the key's own
    digest = hashlib.sha256(message).digest()
    with loaded(tpm, blob, auth) as handle:
        signature = tpm.run(lambda e: e.sign(handle, digest, scheme, session1=tpm.session))
        return es256(signature)


def agree(tpm: Transport, blob: Blob, auth: SecretBuffer, peer_point: bytes) -> SecretBuffer:
    """TPM2_ECDH_ZGen (Part 3, 14.5); the TPM checks that the point is on the curve.

    Raises:
        ValueError: it is not.
    """
    t = tpm.t
    point = t.TPM2B_ECC_POINT(t.TPMS_ECC_POINT(x=peer_point[1:33], y=peer_point[33:]))
    with loaded(tpm, blob, auth) as handle:
        try:
            answer = tpm.run(lambda e: e.ecdh_zgen(handle, point, session1=tpm.session))
        except TpmRefusal as reason:
            if reason.code not in (RC_ECC_POINT, RC_SIZE, RC_VALUE):
                raise
            raise ValueError(f"the TPM refused the peer's point ({reason})") from None
        buffer = SecretBuffer(32)
        x = answer.point.x
        size = x._cdata.size
        buffer.view[32 - size :] = memoryview(t.types.ffi.buffer(x._cdata.buffer, size))
        tpm.wipe(x)
    tpm.overwrite_response()
    return buffer
