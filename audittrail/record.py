"""Reads one line of the log strictly: a line has one meaning, or it is not a record. Nothing here performs IO.

A hash shows that nobody changed a line, not that the line is a record. Readers disagree about bytes that are not UTF-8, about
control characters and about a member that is there twice, so that one line could tell an auditor and a tool different things.
"""

import hashlib
import json
from typing import Any

import msgspec

from .chain import CLASS_MARK, CLASSES, END, HASH_MARK, MAX_LINE_BYTES, PREV_MARK, TAIL_BYTES

_MAX_DIGITS = 20
_MAX_SEQ = 10**_MAX_DIGITS
_sha256 = hashlib.sha256
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode

_HASHED = -64 - len(END) - len(HASH_MARK) + 1
_HASH_MARK = slice(_HASHED - 1, -64 - len(END))
_PREV_MARK = slice(-TAIL_BYTES, -TAIL_BYTES + len(PREV_MARK))
PREV = slice(-TAIL_BYTES + len(PREV_MARK), -TAIL_BYTES + len(PREV_MARK) + 64)
"""Where the `prev` of a record's line is, 64 hex bytes."""
HASH = slice(-64 - len(END), -len(END))
"""Where its `hash` is, 64 hex bytes."""

NOT_A_RECORD = "not a record of this log"


def read(line: bytes) -> dict[str, Any] | None:
    """The members of a line (with its line break); None if it is not a record, or its hash does not fit."""
    try:
        record = _decode(line)
        # As the agent writes it: then no member is there twice. Another encoder's line is parsed once more, slowly.
        if _encode(record) + b"\n" != line and not (line[-3:] == END and _is_unambiguous(line)):
            return None
        names, seq = iter(record), record["seq"]
        if (
            record["hash"] != _sha256(line[:_HASHED]).hexdigest()
            or line[_PREV_MARK] != PREV_MARK
            or line[_HASH_MARK] != HASH_MARK
            or type(seq) is not int
            or not 0 < seq < _MAX_SEQ
            or next(names) != "seq"
            or next(names) != "class"
            or record["class"] not in CLASSES
            or len(line) > MAX_LINE_BYTES
        ):
            return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError):
        return None
    return record


def why_not(line: bytes) -> str:
    """Why `read` returns None."""
    if not line.endswith(b"\n"):
        return "the line is cut short"
    if len(line) > MAX_LINE_BYTES or line[-3:] != END or line[_HASH_MARK] != HASH_MARK:
        return NOT_A_RECORD
    if line[HASH] != _sha256(line[:_HASHED]).hexdigest().encode("ascii"):
        return "its hash does not fit its content: the record was changed"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return f"{NOT_A_RECORD}: its bytes are not UTF-8"
    if any(byte < 0x20 for byte in line[:-1]):
        return f"{NOT_A_RECORD}: it has control characters"
    if not _is_unambiguous(line):
        return f"{NOT_A_RECORD}: it is not JSON, or has a member twice"
    return NOT_A_RECORD


def seq_of(line: bytes) -> int:
    """Number that a line says it has, without checking anything else; 0 if it says none."""
    comma = line.find(b",", 7, 8 + _MAX_DIGITS)
    digits = line[7:comma] if comma > 0 else b""
    if not line.startswith(b'{"seq":') or not digits.isdigit() or digits[0] == 48 or line[comma : comma + 1] != CLASS_MARK[:1]:
        return 0
    return int(digits)


def _is_unambiguous(line: bytes) -> bool:
    """Whether any JSON reader takes the same from the line (RFC 8259, 4: names should be unique)."""
    try:
        json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
