"""Encodes the sealed store, and decides what a set of copies means beside the anchor. Nothing here performs IO.

    "LASTORE1" | MessagePack body | HMAC-SHA256 tag over all before it (32 bytes)

The tag covers the whole store with its generation. Each secret version is AES-256-GCM under a key derived from the KEK, with
agent id, version, state and dates as associated data: a record cannot be given another state or moved to another store.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass
from enum import Enum

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .backend import Anchor
from .errors import StoreCorrupt
from .secretmem import SecretBuffer

MAGIC = b"LASTORE1"
TAG_BYTES = 32
MAX_STORE_BYTES = 1024 * 1024


class VersionMeta(msgspec.Struct, frozen=True):
    """What is known of a secret version besides the secret. Times are seconds since 1970 UTC.

    Attributes:
        version: 1 or more, never used twice.
        state: a word that the store's user gives meaning to.
        valid_from: when it came into force.
        valid_until: when its successor was due.
        grace_until: when licenses under it end at the latest; set and signed by the server.
        installed_at: when this machine installed it.
        invalidated_at: when it was invalidated; None if it was not.
    """

    version: int
    state: str
    valid_from: int
    valid_until: int
    grace_until: int
    installed_at: int
    invalidated_at: int | None = None


class SealedRecord(msgspec.Struct, frozen=True):
    """A version as it lies on disk; `sealed` is empty once the secret has been destroyed."""

    meta: VersionMeta
    nonce: bytes
    sealed: bytes


class StoreBody(msgspec.Struct, frozen=True):
    """The content of a store.

    Attributes:
        agent_id: whose store it is.
        generation: number of the commit that wrote it.
        backend: name of the backend that guards it.
        records: the versions, oldest first.
        sections: further authenticated, unencrypted content, by name.
    """

    agent_id: str
    generation: int
    backend: str
    records: tuple[SealedRecord, ...]
    sections: dict[str, bytes]


def _subkey(kek: SecretBuffer, purpose: str, into: SecretBuffer) -> None:
    HKDF(hashes.SHA256(), 32, salt=None, info=f"license-agent store {purpose} v1".encode()).derive_into(kek.view, into.view)


def _associated(agent_id: str, meta: VersionMeta) -> bytes:
    encoded: bytes = msgspec.msgpack.encode((agent_id, meta))
    return encoded


def seal_record(kek: SecretBuffer, agent_id: str, meta: VersionMeta, secret: SecretBuffer | None) -> SealedRecord:
    """A version as it goes to disk; `secret` is None for one whose secret has been destroyed."""
    if secret is None:
        return SealedRecord(meta, b"", b"")
    nonce = os.urandom(12)
    with SecretBuffer(32) as key:
        _subkey(kek, "record", key)
        return SealedRecord(meta, nonce, AESGCM(key.view).encrypt(nonce, secret.view, _associated(agent_id, meta)))


def unseal_record(kek: SecretBuffer, agent_id: str, record: SealedRecord, into: SecretBuffer) -> None:
    """Decrypts a version's secret into secret memory.

    Raises:
        StoreCorrupt: the record does not belong to this store, or was changed.
    """
    with SecretBuffer(32) as key:
        _subkey(kek, "record", key)
        try:
            AESGCM(key.view).decrypt_into(record.nonce, record.sealed, _associated(agent_id, record.meta), into.view)
        except (InvalidTag, ValueError):
            raise StoreCorrupt(f"secret version {record.meta.version} in the store does not authenticate") from None


def encode_store(kek: SecretBuffer, body: StoreBody) -> bytes:
    """The file's bytes."""
    data = MAGIC + msgspec.msgpack.encode(body)
    return data + _tag(kek, data)


def decode_store(kek: SecretBuffer, data: bytes) -> StoreBody:
    """The store in `data`.

    Raises:
        StoreCorrupt: it is not a store, or its tag is wrong; nothing in it has been looked at then.
    """
    if len(data) < len(MAGIC) + TAG_BYTES or not data.startswith(MAGIC):
        raise StoreCorrupt("not a sealed store")
    if not hmac.compare_digest(data[-TAG_BYTES:], _tag(kek, data[:-TAG_BYTES])):
        raise StoreCorrupt("the store's authentication tag is wrong")
    try:
        return msgspec.msgpack.decode(data[len(MAGIC) : -TAG_BYTES], type=StoreBody)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"the store is of a format that this program does not know: {error}") from None


def _tag(kek: SecretBuffer, data: bytes) -> bytes:
    with SecretBuffer(32) as key:
        _subkey(kek, "tag", key)
        mac = HMAC(key.view, hashes.SHA256())
    mac.update(data)
    return mac.finalize()


class AnchorCase(Enum):
    """How the anchor relates to the counter."""

    EMPTY = "no commit yet"
    COMMITTED = "the anchor is the newest commit"
    HALF = "the commit stopped between anchor and counter"
    TORN = "anchor and counter do not belong together"


def judge_anchor(anchor: Anchor | None, counter: int) -> AnchorCase:
    """Whether the last commit was finished.

    A commit writes the anchor with generation counter + 1, then increments the counter; so a counter one behind is a
    commit to finish, and anything else was not done by us (threat-model T5: rollback of the disk image).
    """
    if anchor is None:
        return AnchorCase.EMPTY
    if counter == anchor.generation:
        return AnchorCase.COMMITTED
    if counter == anchor.generation - 1:
        return AnchorCase.HALF
    return AnchorCase.TORN


@dataclass(frozen=True, slots=True)
class Copies:
    """The files found at start, by role; None where one is missing."""

    main: bytes | None
    twin: bytes | None
    pending: bytes | None


def choose_copy(copies: Copies, digest: bytes) -> bytes | None:
    """The copy whose SHA-256 is the anchor's, whichever file it lies in; None if there is none."""
    for data in (copies.main, copies.twin, copies.pending):
        if data is not None and hashlib.sha256(data).digest() == digest:
            return data
    return None
