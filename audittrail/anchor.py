"""Anchors the chain that is left where retention has removed records. Nothing here performs IO.

An anchor says up to which record a class was removed and what hash that record had, so that the chain that is left still hangs
on something; it is signed by the machine's identity key, so that nobody else can cut a chain and call it retention.
"""

from collections.abc import Callable, Mapping

import msgspec

from common.plain import json_text

from .chain import CLASSES
from .signature import verify_signature

_PURPOSE = b"license-agent audit anchor v1\n"


class Removed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One class's anchor.

    Attributes:
        kind: the retention class.
        last_seq: number of the last record that was removed.
        head: its hash, 64 hex characters.
        records: how many records have been removed in all.
        at: when, seconds since 1970 UTC.
        reason: `retention`, or `space` where the disk budget forced it.
        signature: by the identity key, ES256 over all the rest; r || s, 64 bytes.
    """

    kind: str
    last_seq: int
    head: str
    records: int
    at: int
    reason: str
    signature: bytes = b""


def _signed(anchor: Removed) -> bytes:
    return _PURPOSE + msgspec.json.encode(msgspec.structs.replace(anchor, signature=b""))


def sign(anchor: Removed, signer: Callable[[bytes], bytes]) -> Removed:
    """The anchor with its signature.

    Args:
        anchor: without one.
        signer: ES256 over a message, 64 bytes.
    """
    return msgspec.structs.replace(anchor, signature=signer(_signed(anchor)))


def is_signed_by(anchor: Removed, identity: bytes) -> bool:
    """Whether the key with this public point has signed the anchor."""
    return verify_signature(_signed(anchor), anchor.signature, identity)


def encode(anchors: Mapping[str, Removed]) -> bytes:
    """The file's content."""
    return msgspec.json.format(msgspec.json.encode(list(anchors.values())), indent=1) + b"\n"


def decode(data: bytes) -> dict[str, Removed]:
    """The anchors in a file, by class.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        found = msgspec.json.decode(data, type=list[Removed])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a file of anchors: {json_text(error)}") from None
    by_kind = {anchor.kind: anchor for anchor in found}
    if len(by_kind) != len(found) or not set(by_kind) <= set(CLASSES):
        raise ValueError("not a file of anchors: its classes are wrong")
    if not all(0 < anchor.records <= anchor.last_seq for anchor in found):
        raise ValueError("not a file of anchors: its numbers are wrong")
    return by_kind
