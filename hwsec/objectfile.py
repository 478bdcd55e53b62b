"""The file of what only this TPM can load, and its twin.

    "LATPMOB2" | SHA-256 of the rest | MessagePack body

The checksum tells a broken copy from its whole twin; against an attacker the TPM itself checks what it loads. Besides the blobs
there are two random values in it: the KEK's auth value, and `keys_auth`, from which those of the keys derive. They defend
against another user who may open the TPM but not this file: he can unseal nothing, and use none of the keys, not even while
they are loaded. They do not defend against who reads this file and uses this very TPM, root first of all; a stolen disk alone
is worth nothing, since the blobs load in no other TPM.
"""

import contextlib
import errno
import hashlib
from pathlib import Path

import msgspec

from .errors import AlreadyEnrolled, BackendUnavailable, NotEnrolled, OldFormat
from .files import write_atomic
from .pcrpolicy import Binding

MAGIC = b"LATPMOB2"
_DIGEST = 32
_HEAD = len(MAGIC) + _DIGEST


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
    auth: bytes
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
    keys_auth: bytes
    attestation: Blob
    identity: Blob
    agreement: Blob
    hardware_id: str | None


class ObjectFile:
    """The file and its twin.

    Args:
        path: the file; its twin stands beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.twin = path.with_name(path.name + ".twin")

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
        copies = {path: _read(path) for path in (self.path, self.twin)}
        if all(data is None for data in copies.values()):
            raise NotEnrolled(f"{self.path} does not exist: run 'license-agent init' first")
        for data in copies.values():
            objects = None if data is None else _parse(data)
            if data is None or objects is None:
                continue
            for path, found in copies.items():
                if found != data:
                    with contextlib.suppress(OSError):  # a full disk is no reason not to start
                        write_atomic(path, data)
            return objects
        if any(data is not None and _is_old(data) for data in copies.values()):
            raise OldFormat(
                f"{self.path} was written by an earlier version: move it and its twin away and initialize this agent anew, "
                "which needs new secrets from the server"
            )
        raise NotEnrolled(f"{self.path} and its twin are damaged: initialize this agent anew")

    def write(self, objects: SealedObjects) -> None:
        """Replaces file and twin, one after the other: a cut leaves the old content or the new, never neither.

        Raises:
            BackendUnavailable: the disk does not take it.
        """
        body = msgspec.msgpack.encode(objects)
        data = MAGIC + hashlib.sha256(body).digest() + body
        try:
            write_atomic(self.twin, data)
            write_atomic(self.path, data)
        except OSError as error:
            raise BackendUnavailable(f"{self.path} cannot be written: {error.strerror}") from error


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise BackendUnavailable(f"{path} cannot be read: {error.strerror}") from error
        return b""  # a broken block: its twin may be whole


def _parse(data: bytes) -> SealedObjects | None:
    checksum, body = data[len(MAGIC) : _HEAD], data[_HEAD:]
    if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != checksum:
        return None
    try:
        return msgspec.msgpack.decode(body, type=SealedObjects)
    except (msgspec.MsgspecError, ValueError):
        return None


def _is_old(data: bytes) -> bool:
    """The first format began with the checksum."""
    return len(data) > _DIGEST and hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]
