"""Creates sealed objects and keys below the SRK, loads them for the time of one use, and unseals."""

import contextlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ForeignHardware, unsigned
from ..objectfile import Blob
from ..secretmem import SecretBuffer
from .codes import ANY, RC_INTEGRITY, TpmRefusal
from .templates import SRK, sealed
from .transport import Transport


def seal(tpm: Transport, secret: SecretBuffer, auth: SecretBuffer, policy: bytes) -> Blob:
    """A sealed object (TPM2_Create: Part 3, 12.1) that opens by `policy`, whose PolicyAuthValue asks for `auth`."""
    return _create(tpm, sealed(policy), auth, secret)


def create_key(tpm: Transport, template: bytes, auth: SecretBuffer) -> Blob:
    """A key that the TPM draws (TPM2_Create: Part 3, 12.1) and that is used by `auth`."""
    return _create(tpm, template, auth, None)


def _create(tpm: Transport, template: bytes, auth: SecretBuffer, secret: SecretBuffer | None) -> Blob:
    area = tpm.public_template(template)
    sensitive = _blank_sensitive(tpm, len(auth), 0 if secret is None else len(secret))
    try:
        tpm.fill(sensitive.sensitive.userAuth, auth.view)
        if secret is not None:
            tpm.fill(sensitive.sensitive.data, secret.view)
        private, public, *_ = tpm.run(lambda e: e.create(tpm.srk, sensitive, area, session1=tpm.session))
    finally:
        tpm.wipe(sensitive.sensitive.userAuth)
        tpm.wipe(sensitive.sensitive.data)
        _overwrite_request(tpm, sensitive)
    return Blob(private.marshal(), public.marshal())


def _blank_sensitive(tpm: Transport, auth: int, data: int) -> Any:
    t = tpm.t
    return t.TPM2B_SENSITIVE_CREATE(t.TPMS_SENSITIVE_CREATE(userAuth=bytes(auth), data=bytes(data)))


def _overwrite_request(tpm: Transport, wiped: Any) -> None:
    """The library keeps the arguments of the last TPM2_Create. One more, which the TPM refuses, overwrites them.

    It asks for an object with a sensitive part of our choice that is also made by the TPM: a contradiction, found before
    anything is made.
    """
    if not tpm.connected:
        return
    if not len(wiped.sensitive.data):
        wiped = _blank_sensitive(tpm, len(wiped.sensitive.userAuth), 32)
    template = tpm.public_template(SRK)
    with contextlib.suppress(TpmRefusal):
        tpm.run(lambda e: e.create(tpm.srk, wiped, template, session1=tpm.session), ANY)


@contextmanager
def _loaded(tpm: Transport, blob: Blob) -> Iterator[Any]:
    private = tpm.unmarshal(tpm.t.TPM2B_PRIVATE, blob.private)
    public = tpm.unmarshal(tpm.t.TPM2B_PUBLIC, blob.public)
    try:
        handle = tpm.run(lambda e: e.load(tpm.srk, private, public, session1=tpm.session))
    except TpmRefusal as reason:
        if reason.code == RC_INTEGRITY:
            raise unsigned(
                ForeignHardware("this TPM cannot load the sealed objects: they are damaged or not its own")
            ) from None
        raise
    try:
        yield handle
    finally:
        tpm.flush_quietly(handle)


@contextmanager
def _authorized(tpm: Transport, handle: Any, auth: SecretBuffer, session: Callable[[], Any]) -> Iterator[None]:
    """The object has its auth value for the length of the block, which uses it in that session."""
    try:
        with tpm.lend(handle, auth.view):
            yield
    finally:
        # Refused whatever the object is: by then, the library has worked with another auth value.
        tpm.cover(handle, lambda e: e.unseal(handle, session1=session()))


@contextmanager
def loaded(tpm: Transport, blob: Blob, auth: SecretBuffer) -> Iterator[Any]:
    """The handle of an object that is loaded (Part 3, 12.2) for the length of the block, for the connection's session.

    Raises:
        ForeignHardware: this TPM has not made it.
    """
    with _loaded(tpm, blob) as handle, _authorized(tpm, handle, auth, lambda: tpm.session):
        yield handle


def unseal(
    tpm: Transport,
    blob: Blob,
    auth: SecretBuffer,
    satisfy: Callable[[Any], None],
    into: SecretBuffer,
    refusals: Container[int] = (),
) -> None:
    """TPM2_Unseal (Part 3, 12.7) in a salted policy session of its own, which encrypts the answer.

    Args:
        tpm: the connection.
        blob: the sealed object.
        auth: its auth value.
        satisfy: makes the assertions of its policy in the session that it is given, PolicyAuthValue included.
        into: as long as what is sealed.
        refusals: codes of the unsealing for which the connection stays.

    Raises:
        TpmRefusal: the policy or the auth value is not that of the object.
        ForeignHardware: what is sealed has another length.
    """
    t = tpm.t
    with (
        _loaded(tpm, blob) as handle,
        tpm.fresh_session(t.TPM2_SE.POLICY) as session,
        _authorized(tpm, handle, auth, lambda: session),
    ):
        satisfy(session)
        answer = tpm.run(lambda e: e.unseal(handle, session1=session), refusals)
        try:
            if answer._cdata.size != len(into):
                raise ForeignHardware("the sealed key has an unexpected size")
            into.view[:] = memoryview(t.types.ffi.buffer(answer._cdata.buffer, len(into)))
        finally:
            tpm.wipe(answer)
            tpm.overwrite_response()


def area(blob: Blob) -> bytes:
    """The marshalled TPMT_PUBLIC: what follows the length in a TPM2B_PUBLIC (Part 2, 12.2.5)."""
    return blob.public[2:]


def public_point(tpm: Transport, blob: Blob) -> bytes:
    """The public point of a key on P-256: 65 bytes, uncompressed."""
    public = tpm.unmarshal(tpm.t.TPM2B_PUBLIC, blob.public)
    point = public.publicArea.unique.ecc
    return b"\x04" + bytes(point.x).rjust(32, b"\0") + bytes(point.y).rjust(32, b"\0")
