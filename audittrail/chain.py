"""Encodes audit records as lines of JSON and chains them by their hashes. Nothing here performs IO.

    {"seq":7,"class":"security","time":"…","mono":12.345678,"event":"…","outcome":"…", … ,"prev":"<64 hex>","hash":"<64 hex>"}

All records are in one log, numbered consecutively by `seq`. Those of one retention class form a chain of their own, so that one
class can be removed when its time is over while the others go on: `hash` is SHA-256 over the bytes of the line before
`,"hash":`; `prev` is the `hash` of the class's record before (64 zeros for its first).
"""

import hashlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

ZERO_HASH = b"0" * 64
CLASS_MARK = b',"class":"'
PREV_MARK = b',"prev":"'
HASH_MARK = b'","hash":"'
END = b'"}\n'
TAIL_BYTES = len(PREV_MARK) + 64 + len(HASH_MARK) + 64 + len(END)
MAX_LINE_BYTES = 16 * 1024

APPLICATION, SECURITY, OTA = "application", "security", "ota"
CLASSES = (APPLICATION, SECURITY, OTA)
"""The retention classes, in the order in which their heads are sealed. Append-only: the seal depends on it."""

CHECKPOINT = "audit.checkpoint"
SEGMENT_CLOSED = "audit.segment_closed"
CERTIFIED = "audit.certified"

_APPLICATION_EVENTS = frozenset(
    {"license.validated", "license.refreshed", "license.listed", "usage.counted", "request.refused"}
)
_ATTACKS = frozenset({"bad_signature", "wrong_audience"})

_encode = msgspec.json.Encoder(enc_hook=str).encode

Heads = tuple[bytes, ...]
"""The hash of each class's last record, 64 hex bytes each, in the order of `CLASSES`."""
NO_HEADS: Heads = (ZERO_HASH,) * len(CLASSES)


def utc_text(seconds: float) -> str:
    """A time as the log writes it: RFC 3339, UTC, microseconds."""
    fraction, whole = math.modf(seconds)
    microseconds = round(fraction * 1e6)
    if not 0 <= microseconds < 1_000_000:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
    return f"{_second_text(whole)}.{microseconds:06d}Z"


@lru_cache(maxsize=16)
def _second_text(seconds: float) -> str:
    """A whole second without its zone; many records are of the same one."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")[:-6]


def retention_class(event: str, outcome: str) -> str:
    """The class of a record: daily business is `application`, updates are `ota`, all else is `security`.

    A license that was forged or made for another machine is no daily business.
    """
    if event in _APPLICATION_EVENTS:
        return SECURITY if outcome in _ATTACKS else APPLICATION
    return OTA if event.startswith("ota.") else SECURITY


class Chain:
    """Appends records.

    Attributes:
        seq: number of the last record; 0 before the first.
        heads: the last hash of each class's chain.
    """

    __slots__ = ("_heads", "seq")

    def __init__(self, seq: int = 0, heads: Heads = NO_HEADS) -> None:
        self.seq = seq
        self._heads = dict(zip(CLASSES, heads, strict=True))

    @property
    def heads(self) -> Heads:
        """The hash of each class's last record."""
        return tuple(self._heads.values())

    def rewind(self, seq: int, heads: Heads) -> None:
        """Goes back to where the chains stood: what was appended since does not exist."""
        self.seq = seq
        self._heads = dict(zip(CLASSES, heads, strict=True))

    def append(self, time: float, mono: float, event: str, outcome: str, fields: dict[str, Any]) -> bytes:
        """The next line, with its line break; the chain has moved on to it.

        Args:
            time: wall clock, seconds since 1970 UTC.
            mono: monotonic clock, seconds.
            event: what happened, `subject.verb`.
            outcome: `ok`, or why not.
            fields: further members; none of those above. Left out, but for `actor`, if the line would be too long.
        """
        seq, kind = self.seq + 1, retention_class(event, outcome)
        prev = self._heads[kind]
        record = {
            "seq": seq,
            "class": kind,
            "time": utc_text(time),
            "mono": round(mono, 6),
            "event": event,
            "outcome": outcome,
            **fields,
        }
        body = _encode(record)[:-1] + PREV_MARK + prev
        if len(body) > MAX_LINE_BYTES - TAIL_BYTES:
            # A line that its own verification would refuse helps nobody; what happened is kept, how much there was too.
            short = {name: record[name] for name in ("seq", "class", "time", "mono", "event", "outcome")}
            body = _encode({**short, "actor": fields.get("actor"), "left_out_bytes": len(body)})[:-1] + PREV_MARK + prev
        digest = hashlib.sha256(body + b'"').hexdigest().encode("ascii")
        self.seq, self._heads[kind] = seq, digest
        return body + HASH_MARK + digest + END


def heads_fields(heads: Sequence[bytes]) -> dict[str, str]:
    """Heads as a record shows them: hex by class."""
    return {kind: head.decode("ascii") for kind, head in zip(CLASSES, heads, strict=True)}


def heads_digest(heads: Sequence[bytes]) -> bytes:
    """What is sealed of the heads: SHA-256 over their 32 bytes each, in the order of `CLASSES`.

    Raises:
        ValueError: a head is not hex.
    """
    return hashlib.sha256(b"".join(bytes.fromhex(head.decode("ascii")) for head in heads)).digest()


def fold_checkpoint(value: bytes, digest: bytes) -> bytes:
    """The sealed audit value after a checkpoint: SHA-256(value || digest), as TPM2_NV_Extend does."""
    return hashlib.sha256(value + digest).digest()
