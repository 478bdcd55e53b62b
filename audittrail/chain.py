"""One record of the audit chain as a line of JSON. Nothing here performs IO.

    {"seq":7,"time":"…","mono":12.345678,"event":"…","outcome":"…", … ,"prev":"<64 hex>","hash":"<64 hex>"}

`hash` is SHA-256 over the bytes of the line before `,"hash":`; `prev` is the `hash` of the record before (64 zeros for the
first).
"""

import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec

ZERO_HASH = b"0" * 64
PREV_MARK = b',"prev":"'
HASH_MARK = b'","hash":"'
END = b'"}\n'
TAIL_BYTES = len(PREV_MARK) + 64 + len(HASH_MARK) + 64 + len(END)
MAX_LINE_BYTES = 16 * 1024

CHECKPOINT = "audit.checkpoint"

_encode = msgspec.json.Encoder(enc_hook=str).encode


def utc_text(seconds: float) -> str:
    """A time as the log writes it: RFC 3339, UTC, microseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


class Chain:
    """Appends records to a chain.

    Attributes:
        seq: number of the last record; 0 before the first.
        head: its hash, as 64 bytes of hex.
    """

    __slots__ = ("head", "seq")

    def __init__(self, seq: int = 0, head: bytes = ZERO_HASH) -> None:
        self.seq = seq
        self.head = head

    def append(self, time: float, mono: float, event: str, outcome: str, fields: dict[str, Any]) -> bytes:
        """The next line, with its line break; the chain has moved on to it.

        Args:
            time: wall clock, seconds since 1970 UTC.
            mono: monotonic clock, seconds.
            event: what happened, `subject.verb`.
            outcome: `ok`, or why not.
            fields: further members; none of those above. Left out, but for `actor`, if the line would be too long.
        """
        seq = self.seq + 1
        record = {"seq": seq, "time": utc_text(time), "mono": round(mono, 6), "event": event, "outcome": outcome, **fields}
        body = _encode(record)[:-1] + PREV_MARK + self.head
        if len(body) > MAX_LINE_BYTES - TAIL_BYTES:
            # A line that its own verification would refuse helps nobody; what happened is kept, how much there was too.
            short = {name: record[name] for name in ("seq", "time", "mono", "event", "outcome")}
            body = _encode({**short, "actor": fields.get("actor"), "left_out_bytes": len(body)})[:-1] + PREV_MARK + self.head
        digest = hashlib.sha256(body + b'"').hexdigest().encode("ascii")
        self.seq, self.head = seq, digest
        return body + HASH_MARK + digest + END


def fold_checkpoint(value: bytes, head: bytes) -> bytes:
    """The sealed audit value after a checkpoint over `head` (64 hex bytes): SHA-256(value || head), as TPM2_NV_Extend does."""
    return hashlib.sha256(value + bytes.fromhex(head.decode("ascii"))).digest()
