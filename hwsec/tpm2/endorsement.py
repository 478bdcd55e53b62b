"""Derives the endorsement key from its seed for each use, reads its certificate, and decrypts with it.

It belongs to the TPM and not to us. Its policy is TPM2_PolicySecret of the endorsement hierarchy, whose auth value is empty
unless an administrator has taken it; then the TPM has no identity to show, which is not an error here.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from ..backend import Endorsement
from ..errors import ActivationRefused, NoEndorsementKey, unsigned
from ..objectfile import Blob
from ..secretmem import SecretBuffer
from .codes import (
    RC_ASYMMETRIC,
    RC_AUTH_FAIL,
    RC_BAD_AUTH,
    RC_CURVE,
    RC_HIERARCHY,
    RC_KEY_SIZE,
    RC_NV_AUTHORIZATION,
    RC_NV_LOCKED,
    RC_NV_UNINITIALIZED,
    RC_POLICY_FAIL,
    RC_SCHEME,
    RC_SYMMETRIC,
    RC_VALUE,
    TpmRefusal,
)
from .facts import read_permanent, read_property
from .objects import loaded
from .templates import EK_ECC, EK_RSA
from .transport import Transport


class _Kind(NamedTuple):
    template: bytes
    certificate: int


# TCG EK Credential Profile 2.5, B.3 (templates) and 2.2.1.4 (NV indices in the low range).
KINDS = (_Kind(EK_ECC, 0x01C0000A), _Kind(EK_RSA, 0x01C00002))
"""In the order in which they are tried: a TPM has one identity, and it must not depend on what else is in its NV memory."""

CERTIFICATE_MAX = 4096
BLOB_MAX = 128
"""Bytes of a TPM2B_ID_OBJECT's content: an HMAC and an encrypted digest, each of at most 64 bytes with its length."""
SECRET_MAX = 512
"""Bytes of a TPM2B_ENCRYPTED_SECRET's content: as long as the longest modulus that the TPM library knows."""

_UNREADABLE = (RC_NV_UNINITIALIZED, RC_NV_LOCKED, RC_NV_AUTHORIZATION, RC_AUTH_FAIL, RC_BAD_AUTH)
"""What a TPM answers where an index was never written, is locked, or is for others to read."""
_PT_NV_BUFFER_MAX = 0x12C  # Part 2, 6.13
_CHUNK = 1024
_COORDINATE = 32
_NOT_THIS_KIND = (
    *(RC_ASYMMETRIC, RC_VALUE, RC_HIERARCHY, RC_KEY_SIZE, RC_SCHEME, RC_SYMMETRIC, RC_CURVE),
    *(RC_AUTH_FAIL, RC_BAD_AUTH),
)
"""What a TPM answers that lacks an algorithm, or whose endorsement hierarchy is switched off or has an auth value."""


def _create(tpm: Transport, template: bytes) -> tuple[Any, Any]:
    """Handle and public area (TPM2_CreatePrimary: Part 3, 24.1)."""
    area = tpm.public_template(template)
    # In the session: nobody on the bus shall put another key in the place of this one.
    handle, public, *_ = tpm.run(
        lambda e: e.create_primary(None, area, primary_handle=tpm.t.ESYS_TR.ENDORSEMENT, session1=tpm.session),
        _NOT_THIS_KIND,
    )
    return handle, public.publicArea


class _Found(NamedTuple):
    """The endorsement key while it is loaded.

    Attributes:
        handle: of the loaded key; None where there is no key.
        public: its marshalled public area.
        kind: which of the two it is.
        signed: whether the TPM authenticates that it is this key, or that there is none. It does not sign its refusal to make
            one of a kind that comes earlier.
    """

    handle: Any
    public: bytes
    kind: _Kind
    signed: bool


@contextmanager
def _endorsement_key(tpm: Transport) -> Iterator[_Found]:
    """The endorsement key for the length of the block.

    Raises:
        BackendUnavailable: the TPM did not answer, or has no room; that says nothing about the key.
    """
    if "endorsement" not in read_permanent(tpm).hierarchies_open:
        yield _Found(None, b"", KINDS[0], signed=True)
        return
    signed = True
    for kind in KINDS:
        try:
            handle, area = _create(tpm, kind.template)
        except TpmRefusal as reason:
            if reason.code not in _NOT_THIS_KIND:
                raise
            signed = False
            continue
        try:
            yield _Found(handle, _canonical(tpm, area), kind, signed)
        finally:
            tpm.flush_quietly(handle)
        return
    yield _Found(None, b"", KINDS[0], signed)


def _canonical(tpm: Transport, area: Any) -> bytes:
    """TPMT_PUBLIC with coordinates of full length; some TPMs leave leading zeros out, and one key must have one identity."""
    data = bytes(area.marshal())
    if int(area.type) != int(tpm.t.TPM2_ALG.ECC):
        return data
    coordinates = [bytes(each) for each in (area.unique.ecc.x, area.unique.ecc.y)]
    head = data[: len(data) - sum(2 + len(each) for each in coordinates)]
    size = _COORDINATE.to_bytes(2, "big")
    return head + b"".join(size + each.rjust(_COORDINATE, b"\0") for each in coordinates)


def hardware_id(tpm: Transport) -> tuple[str | None, bool]:
    """Hex SHA-256 over the endorsement key's public area, as in `Endorsement.public`; None where there is none.

    Returns:
        The id, and whether the TPM authenticates it.
    """
    with _endorsement_key(tpm) as key:
        return (None if key.handle is None else hashlib.sha256(key.public).hexdigest()), key.signed


def read_endorsement(tpm: Transport) -> tuple[Endorsement | None, bool]:
    """The endorsement key with its certificate; None where there is none.

    Returns:
        The key, and whether the TPM authenticates that it is this one with this certificate.
    """
    with _endorsement_key(tpm) as key:
        pass
    if key.handle is None:
        return None, key.signed
    certificate, signed = _read_certificate(tpm, key.kind.certificate)
    return Endorsement(key.public, certificate), key.signed and signed


def _read_certificate(tpm: Transport, index: int) -> tuple[bytes | None, bool]:
    """What the manufacturer has written into that NV index (Part 3, 31.6 and 31.13); None where nothing can be read."""
    if index not in tpm.handles_from(index, tpm.witness):
        return None, True
    handle = tpm.run(lambda e: e.tr_from_tpmpublic(index, session1=tpm.session))
    try:
        return _certificate_of(_read_all(tpm, handle)), True
    except TpmRefusal as reason:
        if reason.code not in _UNREADABLE:
            raise
        return None, False
    finally:
        if tpm.connected:
            tpm.run(lambda e: e.tr_close(handle))


def _read_all(tpm: Transport, handle: Any) -> bytes:
    t = tpm.t
    public = tpm.run(lambda e: e.nv_read_public(handle, session1=tpm.session))[0].nvPublic
    size = min(int(public.dataSize), CERTIFICATE_MAX)
    by_index = int(public.attributes) & int(t.TPMA_NV.AUTHREAD)
    reader = handle if by_index else t.ESYS_TR.OWNER
    chunk = min(_CHUNK, read_property(tpm, _PT_NV_BUFFER_MAX))
    data = bytearray()
    while len(data) < size:
        read = partial(t.ESAPI.nv_read, nv_index=handle, size=min(chunk, size - len(data)), offset=len(data))
        data += bytes(
            tpm.run(lambda e, read=read: read(e, auth_handle=reader, session1=tpm.session), _UNREADABLE)  # type: ignore[misc]
        )
    return bytes(data)


def _certificate_of(data: bytes) -> bytes | None:
    """The DER value (X.690, 8.1.3) at the beginning: some makers fill the index up behind it. None if there is no whole one."""
    if len(data) < 4 or data[0] != 0x30 or data[1] not in (0x81, 0x82):
        return None
    head = 2 + (data[1] & 0x0F)
    size = head + int.from_bytes(data[2:head], "big")
    return data[:size] if size <= len(data) else None


def activate(tpm: Transport, attestation: Blob, auth: SecretBuffer, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
    """TPM2_ActivateCredential (Part 3, 12.5).

    The attestation key takes the ADMIN role. As it has no adminWithPolicy, its auth value is enough (Part 1, 19.2); the
    endorsement key wants a session of its policy.

    Raises:
        NoEndorsementKey: the TPM has no endorsement key.
        ActivationRefused: the TPM does not open it.
    """
    t = tpm.t
    if not len(credential_blob) <= BLOB_MAX or not len(encrypted_secret) <= SECRET_MAX:
        raise ActivationRefused("the credential is longer than any that is made for a TPM")
    blob = t.TPM2B_ID_OBJECT(credential=credential_blob)
    secret = t.TPM2B_ENCRYPTED_SECRET(secret=encrypted_secret)
    with contextlib.ExitStack() as stack:
        key = stack.enter_context(_endorsement_key(tpm))
        if key.handle is None:
            problem = NoEndorsementKey(
                "the TPM gives no endorsement key: it has none of ECC P-256 or RSA 2048, or the auth value of its endorsement "
                "hierarchy is set; set it back to empty for the time of the enrollment"
            )
            raise problem if key.signed else unsigned(problem)
        policy = stack.enter_context(tpm.fresh_session(t.TPM2_SE.POLICY, encrypts=False))
        tpm.run(lambda e: e.policy_secret(t.ESYS_TR.ENDORSEMENT, policy, expiration=0, session1=tpm.session))
        handle = stack.enter_context(loaded(tpm, attestation, auth))
        try:
            answer = tpm.run(
                lambda e: e.activate_credential(handle, key.handle, blob, secret, session1=tpm.session, session2=policy)
            )
        except TpmRefusal as reason:
            if reason.code in (RC_BAD_AUTH, RC_AUTH_FAIL, RC_POLICY_FAIL):
                raise
            raise unsigned(
                ActivationRefused(
                    "the TPM does not open the credential: it was made for another TPM or another attestation key, or was "
                    f"changed on its way; begin the enrollment again ({reason})"
                )
            ) from None
        try:
            return bytes(answer)
        finally:
            tpm.wipe(answer)
            tpm.overwrite_response()
