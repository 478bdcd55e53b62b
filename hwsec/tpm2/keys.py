"""Loads the agent's keys in the TPM for one use each, by an auth value that nobody else has."""

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from ..backend import SIGNATURE_BYTES, CertifiedKey
from ..objectfile import Blob
from ..secretmem import SecretBuffer
from .objects import area, loaded
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


def certify(
    tpm: Transport, subject: Blob, subject_auth: SecretBuffer, signer: Blob, signer_auth: SecretBuffer, nonce: bytes
) -> CertifiedKey:
    """TPM2_Certify (Part 3, 18.2): the signer says that the subject is in the same TPM, and what it is.

    The subject takes the ADMIN role. As it has no adminWithPolicy, its auth value is enough (Part 1, 19.2).
    """
    t = tpm.t
    scheme = t.TPMT_SIG_SCHEME(scheme=t.TPM2_ALG.NULL)  # the key's own
    with (
        loaded(tpm, signer, signer_auth) as signing,
        loaded(tpm, subject, subject_auth) as certified,
        tpm.fresh_session(t.TPM2_SE.HMAC, encrypts=False) as second,
    ):
        try:
            attest, signature = tpm.run(
                lambda e: e.certify(certified, signing, nonce, scheme, session1=tpm.session, session2=second)
            )
        finally:
            # Two handles want two sessions, and each keeps an auth value. The signer has none for the library from here on.
            tpm.cover(signing, lambda e: e.unseal(signing, session1=second))
    return CertifiedKey(area(subject), bytes(attest), es256(signature))


def agree(tpm: Transport, blob: Blob, auth: SecretBuffer, peer_point: bytes) -> SecretBuffer:
    """TPM2_ECDH_ZGen (Part 3, 14.5).

    Raises:
        ValueError: the point is not on the curve. Checked here, because the TPM's refusal would not be signed.
    """
    ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), peer_point)
    t = tpm.t
    point = t.TPM2B_ECC_POINT(t.TPMS_ECC_POINT(x=peer_point[1:33], y=peer_point[33:]))
    with loaded(tpm, blob, auth) as handle:
        answer = tpm.run(lambda e: e.ecdh_zgen(handle, point, session1=tpm.session))
        buffer = SecretBuffer(32)
        x = answer.point.x
        size = x._cdata.size
        buffer.view[32 - size :] = memoryview(t.types.ffi.buffer(x._cdata.buffer, size))
        tpm.wipe(x)
    tpm.overwrite_response()
    return buffer
