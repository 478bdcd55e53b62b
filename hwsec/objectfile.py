"""Reads and writes the file of objects that only this TPM can load, and its twin.

    "LATPMOB2" | SHA-256 of the rest | MessagePack body

The checksum tells a broken copy from its whole twin; against an attacker the TPM itself checks what it loads. Besides the blobs
there are two random values in it: the KEK's auth value, and `keys_auth`, from which those of the keys derive. They defend
against another user who may open the TPM but not this file: he can unseal nothing, and use none of the keys, not even while
they are loaded. They do not defend against who reads this file and uses this very TPM, root first of all; a stolen disk alone
is worth nothing, since the blobs load in no other TPM. In memory both rest in a vault.
"""

import contextlib
import errno
import hashlib
import os
from pathlib import Path

import msgspec

from common.files import write_atomic

from .errors import AlreadyEnrolled, BackendUnavailable, NotEnrolled, OldFormat
from .pcr.policy import Binding
from .secretfile import read_secret_file
from .secretmem import SecretBuffer
from .vault import SECRET_BYTES, Vault, WrappedSecret

MAGIC = b"LATPMOB2"
_DIGEST = 32
_HEAD = len(MAGIC) + _DIGEST
_MAX = 64 * 1024


class Blob(msgspec.Struct, frozen=True):
    """An object as TPM2_Create gives it: both parts marshalled, the private one encrypted by the TPM."""

    private: bytes
    public: bytes


class SealedKek(msgspec.Struct, frozen=True):
    """The sealed KEK, with what its policy asks for.

    Attributes:
        blob: the sealed object.
        auth: its auth value, 32 random bytes.
        binding: what its policy binds it to. Changed by hand, it only makes the TPM refuse.
    """

    blob: Blob
    auth: WrappedSecret
    binding: Binding


class SealedObjects(msgspec.Struct, frozen=True):
    """What the file holds.

    Attributes:
        srk_name: name of the storage root key that is the parent of all.
        kek: the sealed KEK.
        keys_auth: random, from which the auth values of the keys and of the policy counter derive: they must be usable while
            the KEK is not.
        attestation: a restricted signing key.
        identity: an unrestricted signing key.
        agreement: a key for ECDH.
        hardware_id: as in `BackendStatus`, at the time of the enrolment.
    """

    srk_name: bytes
    kek: SealedKek
    keys_auth: WrappedSecret
    attestation: Blob
    identity: Blob
    agreement: Blob
    hardware_id: str | None


class _KekRecord(msgspec.Struct, frozen=True):
    """`SealedKek` as the file holds it."""

    blob: Blob
    auth: memoryview
    binding: Binding


class _Record(msgspec.Struct, frozen=True):
    """`SealedObjects` as the file holds it; read, its views are of the buffer that holds the file."""

    srk_name: bytes
    kek: _KekRecord
    keys_auth: memoryview
    attestation: Blob
    identity: Blob
    agreement: Blob
    hardware_id: str | None


class ObjectFile:
    """The file and its twin.

    Args:
        path: the file; its twin is beside it.
        vault: holds the auth values in memory.
    """

    def __init__(self, path: Path, vault: Vault) -> None:
        self.path = path
        self.twin = path.with_name(path.name + ".twin")
        self._vault = vault

    def require_none(self) -> None:
        """Raises AlreadyEnrolled: there is one."""
        if self.path.exists() or self.twin.exists():
            raise AlreadyEnrolled(f"{self.path} exists already: this agent has been initialized")

    def read(self) -> SealedObjects:
        """What the file holds; a broken copy is restored from the whole one.

        Raises:
            NotEnrolled: there is no file, or no copy of it is whole.
            OldFormat: an earlier version has written it.
            BackendUnavailable: the disk does not let it be read.
        """
        with contextlib.ExitStack() as stack:
            copies: dict[Path, memoryview | None] = {}
            for path in (self.path, self.twin):
                buffer = _read(path)
                copies[path] = None if buffer is None else stack.enter_context(buffer).view
            return self._choose(copies)

    def _choose(self, copies: dict[Path, memoryview | None]) -> SealedObjects:
        if all(data is None for data in copies.values()):
            raise NotEnrolled(f"{self.path} does not exist")
        for data in copies.values():
            objects = None if data is None else self._parse(data)
            if data is None or objects is None:
                continue
            for path, found in copies.items():
                if found != data:
                    with contextlib.suppress(OSError):  # a full disk is no reason not to start
                        write_atomic(path, data)
            return objects
        if any(data is not None and _is_old(data) for data in copies.values()):
            raise OldFormat(
                f"{self.path} was written by an earlier version: move it and its twin away and initialize this agent again, "
                "which needs new secrets from the server"
            )
        raise NotEnrolled(f"{self.path} and its twin are damaged: initialize this agent again")

    def _parse(self, data: memoryview) -> SealedObjects | None:
        checksum, body = data[len(MAGIC) : _HEAD], data[_HEAD:]
        if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != checksum:
            return None
        try:
            record = msgspec.msgpack.decode(body, type=_Record)
            return SealedObjects(
                srk_name=record.srk_name,
                kek=SealedKek(record.kek.blob, self._wrap(record.kek.auth), record.kek.binding),
                keys_auth=self._wrap(record.keys_auth),
                attestation=record.attestation,
                identity=record.identity,
                agreement=record.agreement,
                hardware_id=record.hardware_id,
            )
        except (msgspec.MsgspecError, ValueError):
            return None

    def _wrap(self, value: memoryview) -> WrappedSecret:
        with SecretBuffer(len(value)) as buffer:
            buffer.view[:] = value
            return self._vault.wrap(buffer)

    def write(self, objects: SealedObjects) -> None:
        """Replaces file and twin, one after the other: a cut leaves the old content or the new, never neither.

        Raises:
            BackendUnavailable: the disk does not take it.
        """
        # Encoded with something else in the place of the auth values, which never are in ordinary memory.
        places = {os.urandom(SECRET_BYTES): objects.kek.auth, os.urandom(SECRET_BYTES): objects.keys_auth}
        kek_place, keys_place = (memoryview(place) for place in places)
        body = msgspec.msgpack.encode(
            _Record(
                srk_name=objects.srk_name,
                kek=_KekRecord(objects.kek.blob, kek_place, objects.kek.binding),
                keys_auth=keys_place,
                attestation=objects.attestation,
                identity=objects.identity,
                agreement=objects.agreement,
                hardware_id=objects.hardware_id,
            )
        )
        with SecretBuffer(_HEAD + len(body)) as data:
            data.view[: len(MAGIC)] = MAGIC
            data.view[_HEAD:] = body
            for place, wrapped in places.items():
                start = _HEAD + body.index(place)
                with self._vault.open(wrapped) as auth:
                    data.view[start : start + SECRET_BYTES] = auth.view
            data.view[len(MAGIC) : _HEAD] = hashlib.sha256(data.view[_HEAD:]).digest()
            try:
                write_atomic(self.twin, data.view)
                write_atomic(self.path, data.view)
            except OSError as error:
                raise BackendUnavailable(f"{self.path} cannot be written: {error.strerror}") from error


def _read(path: Path) -> SecretBuffer | None:
    try:
        return read_secret_file(path, _MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise BackendUnavailable(f"{path} cannot be read: {error.strerror}") from error
        return SecretBuffer(1)  # a broken block: its twin may be whole


def _is_old(data: memoryview) -> bool:
    """The first format began with the checksum."""
    return len(data) > _DIGEST and hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]
