"""Compresses and encrypts the records of one class of one closed segment, and opens such archives. Performs no IO.

    "LAARCH1\\n" | header length (4 bytes, big-endian) | header (JSON) | ciphertext

The ciphertext is AES-256-GCM under a key of its own, over the zlib stream of the lines; the associated data is all that stands
before it. The header carries that key encrypted: for the machine that wrote it (under a key derived from its KEK) and, if the
operator wants to read the archives of a machine that is lost, for the operator's P-256 key (ECDH with an ephemeral key,
HKDF-SHA256, AES-256-GCM). The header is in clear, so that retention can be judged without a key.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .chain import CLASSES, MAX_LINE_BYTES

MAGIC = b"LAARCH1\n"
SUFFIX = ".archive"
MAX_HEADER_BYTES = 4096
MAX_ARCHIVE_BYTES = 256 * 1024 * 1024
KEY_BYTES = 32
_NONCE_BYTES = 12
_LENGTH = struct.Struct(">I")
_MACHINE = b"license-agent audit archive machine v1"
_OPERATOR = b"license-agent audit archive operator v1"


class ArchiveDamaged(Exception):
    """An archive cannot be read: damaged, changed, or made for another key."""


class WrongKey(ArchiveDamaged):
    """An archive does not open with this key: it was made for another one, or somebody changed what holds its key."""


class Wrapped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The archive's key for one reader.

    Attributes:
        nonce: of the encryption, 12 bytes.
        sealed: the encrypted key.
        point: the ephemeral public point, for the operator; empty for the machine.
    """

    nonce: bytes
    sealed: bytes
    point: bytes = b""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an archive holds.

    Attributes:
        kind: the retention class.
        first_seq: number of its first record.
        last_seq: number of its last record.
        records: how many.
        prev: hash of the class's record before, 64 hex characters.
        head: hash of its last record.
        last_time: when the segment was closed, seconds since 1970 UTC: its records are not younger.
        machine: the key for the machine.
        operator: the key for the operator.
    """

    kind: str
    first_seq: int
    last_seq: int
    records: int
    prev: str
    head: str
    last_time: int
    machine: Wrapped | None = None
    operator: Wrapped | None = None


def archive_name(stem: str, header: Header) -> str:
    """The file's name: `audit-<first seq of the segment's class>-<class>.archive`."""
    return f"{stem}-{header.first_seq:012d}-{header.kind}{SUFFIX}"


def archives(log: Path) -> list[Path]:
    """The archives of a log, by the number of their first record."""
    return sorted(log.parent.glob(f"{log.stem}-[0-9]*-*{SUFFIX}"))


def seal(header: Header, compressed: bytes, machine_key: memoryview, operator_key: ec.EllipticCurvePublicKey | None) -> bytes:
    """An archive's bytes.

    Args:
        header: without the wrapped keys.
        compressed: the zlib stream of the lines.
        machine_key: 32 bytes that only this machine can derive.
        operator_key: who else may read it; P-256.
    """
    key = os.urandom(KEY_BYTES)
    header = msgspec.structs.replace(
        header,
        machine=_wrap(machine_key, key, _MACHINE),
        operator=None if operator_key is None else _wrap_for(operator_key, key),
    )
    text = msgspec.json.encode(header)
    front = MAGIC + _LENGTH.pack(len(text)) + text
    nonce = os.urandom(_NONCE_BYTES)
    return front + nonce + AESGCM(key).encrypt(nonce, compressed, front)


def read_header(front: bytes) -> tuple[Header, int]:
    """The header at the beginning of an archive, and where the ciphertext begins. It is not authentic until `unseal`.

    Raises:
        ArchiveDamaged: it is not an archive.
    """
    start = len(MAGIC) + _LENGTH.size
    if len(front) < start or not front.startswith(MAGIC):
        raise ArchiveDamaged("not an archive of the audit log")
    (length,) = _LENGTH.unpack_from(front, len(MAGIC))
    if length > MAX_HEADER_BYTES or len(front) < start + length:
        raise ArchiveDamaged("the archive's header is cut short")
    try:
        header = msgspec.json.decode(front[start : start + length], type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ArchiveDamaged("the archive's header cannot be read") from None
    if header.kind not in CLASSES or not 0 < header.first_seq <= header.last_seq:
        raise ArchiveDamaged("the archive's header makes no sense")
    return header, start + length


def unseal_for_machine(data: bytes, machine_key: memoryview) -> tuple[Header, bytes]:
    """Header and zlib stream of an archive, with the machine's key.

    Raises:
        ArchiveDamaged: it was changed.
        WrongKey: another machine wrote it, or it was changed.
    """
    header, start = read_header(data)
    if header.machine is None:
        raise WrongKey("the archive has no key for a machine")
    return header, _decrypt(data, start, _unwrap(machine_key, header.machine, _MACHINE))


def unseal_for_operator(data: bytes, private_key: ec.EllipticCurvePrivateKey) -> tuple[Header, bytes]:
    """Header and zlib stream of an archive, with the operator's key.

    Raises:
        ArchiveDamaged: it was changed.
        WrongKey: it was not made for this key, or it was changed.
    """
    header, start = read_header(data)
    if header.operator is None:
        raise WrongKey("the archive was not made for an operator's key ([audit] archive_key was not set)")
    try:
        peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), header.operator.point)
    except ValueError:
        raise WrongKey("the archive's ephemeral key is not a point of P-256") from None
    key = _agreed(private_key.exchange(ec.ECDH(), peer), header.operator.point, private_key.public_key())
    return header, _decrypt(data, start, _unwrap(key, header.operator, _OPERATOR))


def lines(compressed: bytes) -> Iterator[bytes]:
    """The lines of a zlib stream, with their line breaks, in bounded memory.

    Raises:
        ArchiveDamaged: it is not a whole zlib stream of lines of the log.
    """
    engine, rest, position = zlib.decompressobj(), b"", 0
    try:
        while position < len(compressed) or engine.unconsumed_tail:
            piece = engine.unconsumed_tail
            if not piece:
                piece = compressed[position : position + 65_536]
                position += len(piece)
            rest += engine.decompress(piece, 262_144)
            *whole, rest = rest.splitlines(keepends=True) if b"\n" in rest else [rest]
            if rest.endswith(b"\n"):
                whole, rest = [*whole, rest], b""
            if len(rest) > MAX_LINE_BYTES:
                raise ArchiveDamaged("the archive holds no lines of the log")
            yield from whole
    except zlib.error:
        raise ArchiveDamaged("the archive's content is not a zlib stream") from None
    if not engine.eof or rest:
        raise ArchiveDamaged("the archive's content is cut short")


def _wrap(key: bytes | memoryview, archive_key: bytes, purpose: bytes) -> Wrapped:
    nonce = os.urandom(_NONCE_BYTES)
    return Wrapped(nonce, AESGCM(key).encrypt(nonce, archive_key, purpose))


def _wrap_for(operator: ec.EllipticCurvePublicKey, archive_key: bytes) -> Wrapped:
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    key = _agreed(ephemeral.exchange(ec.ECDH(), operator), point, operator)
    return msgspec.structs.replace(_wrap(key, archive_key, _OPERATOR), point=point)


def _agreed(shared: bytes, ephemeral: bytes, recipient: ec.EllipticCurvePublicKey) -> bytes:
    """HKDF over the shared x coordinate; both public points go in (SP 800-56C, 4.1, FixedInfo)."""
    static = recipient.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=_OPERATOR + ephemeral + static).derive(shared)


def _unwrap(key: bytes | memoryview, wrapped: Wrapped, purpose: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(wrapped.nonce, wrapped.sealed, purpose)
    except (InvalidTag, ValueError):
        raise WrongKey("the archive was not made for this key, or was changed") from None


def _decrypt(data: bytes, start: int, key: bytes) -> bytes:
    nonce = data[start : start + _NONCE_BYTES]
    try:
        return AESGCM(key).decrypt(nonce, memoryview(data)[start + _NONCE_BYTES :], data[:start])
    except (InvalidTag, ValueError):
        raise ArchiveDamaged("the archive was changed or is cut short") from None
