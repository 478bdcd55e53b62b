"""Checks chains of audit records. `verify_lines` performs no IO; `verify_files` reads."""

import base64
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from . import certificate
from .chain import (
    CERTIFIED,
    CHECKPOINT,
    CLASS_MARK,
    CLASSES,
    END,
    HASH_MARK,
    MAX_LINE_BYTES,
    NO_HEADS,
    PREV_MARK,
    SEGMENT_CLOSED,
    TAIL_BYTES,
    ZERO_HASH,
    Heads,
    fold_checkpoint,
    heads_digest,
    heads_fields,
)
from .signature import verify_signature

_sha256 = hashlib.sha256
_MAX_DIGITS = 20
_MARK = b'"event":"audit.'
_KINDS = {kind.encode(): kind for kind in CLASSES}


@dataclass(frozen=True, slots=True)
class Problem:
    """The first place where the log is not intact.

    Attributes:
        line: line number in its file, from 1; counted over all files by `verify_lines`.
        seq: the number that the record should have.
        text: what is wrong.
        file: where; empty where only lines were given.
    """

    line: int
    seq: int
    text: str
    file: str = ""

    def __str__(self) -> str:
        where = f"{self.file}, line {self.line}" if self.file else f"line {self.line}"
        return f"{where} (record {self.seq}): {self.text}"


@dataclass(slots=True)
class Verification:
    """What a check found.

    Attributes:
        records: records that hold.
        first_seq: number of the first one; 0 if there is none.
        last_seq: number of the last one that holds.
        chains: the hash of the last record of each class, 64 hex bytes; a class of which nothing is known is missing.
        begins: for each class whose chain does not begin here, the hash that the first record there is follows, with the
            number of the record that tells it. An anchor must account for what came before.
        values: the sealed audit value before and after the last checkpoint. Power may fail between log and seal, so
            either may be what is sealed.
        resealed: numbers of the checkpoints that began a new seal, because what was sealed did not fit the log; each
            was alerted when it happened.
        last_checkpoint: number of the last checkpoint; 0 if there is none.
        certified: number of the last record that holds a certificate of the value; 0 if there is none.
        attestation: public point of the machine's attestation key, set by who knows it; without it the signatures of the
            certificates are not checked.
        problem: None if all records hold.
    """

    records: int = 0
    first_seq: int = 0
    last_seq: int = 0
    chains: dict[str, bytes] = field(default_factory=dict)
    begins: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    values: list[bytes] = field(default_factory=list)
    resealed: list[int] = field(default_factory=list)
    last_checkpoint: int = 0
    certified: int = 0
    attestation: bytes | None = None
    problem: Problem | None = None

    @property
    def ok(self) -> bool:
        """Whether all records hold."""
        return self.problem is None

    def audit_fields(self) -> dict[str, Any]:
        """Returns what the check found as plain values by name."""
        return {
            "ok": self.ok,
            "problem": None if self.problem is None else str(self.problem),
            "records": self.records,
            "first_seq": self.first_seq,
            "last_seq": self.last_seq,
            "heads": heads_fields(self.heads),
            "last_checkpoint": self.last_checkpoint,
            "resealed": self.resealed,
            "certified": self.certified,
        }

    @property
    def heads(self) -> Heads:
        """The hash of each class's last record; zeros for a class of which nothing is known."""
        return tuple(self.chains.get(kind, ZERO_HASH) for kind in CLASSES)


def verify_lines(lines: Iterable[bytes], so_far: Verification | None = None, *, whole: bool = True) -> Verification:
    """Checks lines (with their line breaks), going on from `so_far` if given.

    A log need not begin with record 1: retention may have removed what came before; `begins` tells what must account
    for it.

    Args:
        lines: of one file or of several.
        so_far: what an earlier call returned.
        whole: whether the lines are of all classes, so that no number may be missing. Otherwise what is said of a class
            of which no record has been seen yet cannot be checked: retention may have removed it.
    """
    result = so_far or Verification()
    for number, line in enumerate(lines, start=1):
        seq, kind = _place(line)
        if result.records == 0:
            _begin(result, seq, whole)
        elif whole and seq != result.last_seq + 1:
            seq = result.last_seq + 1
            kind = b""
        expected = result.chains.get(_KINDS.get(kind, ""))
        if not (
            seq > result.last_seq
            and kind in _KINDS
            and len(line) <= MAX_LINE_BYTES
            and line[-67:-3] == _sha256(line[: -67 - len(HASH_MARK) + 1]).hexdigest().encode("ascii")
            and line[-TAIL_BYTES : -TAIL_BYTES + 9] == PREV_MARK
            and (expected is None or line[-TAIL_BYTES + 9 : -TAIL_BYTES + 73] == expected)
            and line[-3:] == END
            and line[-67 - len(HASH_MARK) : -67] == HASH_MARK
        ):
            wanted = seq if seq > result.last_seq else result.last_seq + 1
            result.problem = Problem(number, wanted, _why(line, wanted, expected))
            break
        if _MARK in line:
            text = _check_statement(line, seq, result, whole)
            if text is not None:
                result.problem = Problem(number, seq, text)
                break
        if expected is None:
            result.begins[_KINDS[kind]] = (seq, line[-TAIL_BYTES + 9 : -TAIL_BYTES + 73])
        result.chains[_KINDS[kind]] = line[-67:-3]
        result.records += 1
        result.last_seq = seq
    return result


def _place(line: bytes) -> tuple[int, bytes]:
    """Number and class that a line says it has; 0 or an unknown class if it says nothing that can be read."""
    comma = line.find(b",", 7, 8 + _MAX_DIGITS)
    digits = line[7:comma] if comma > 0 else b""
    if not line.startswith(b'{"seq":') or not digits.isdigit() or (digits[0] == 48):
        return 0, b""
    start = comma + len(CLASS_MARK)
    if line[comma:start] != CLASS_MARK:
        return int(digits), b""
    return int(digits), line[start : line.find(b'"', start, start + 16)]


def seq_of(line: bytes) -> int:
    """Number that a record's line says it has; 0 if it says none."""
    return _place(line)[0]


def _begin(result: Verification, seq: int, whole: bool) -> None:
    """What must have come before the first line that is there."""
    if seq <= 1 and whole:
        result.chains = dict(zip(CLASSES, NO_HEADS, strict=True))
    result.first_seq, result.last_seq = max(seq, 1), max(seq, 1) - 1


def _why(line: bytes, seq: int, head: bytes | None) -> str:
    if not line.endswith(b"\n"):
        return "the line is cut short"
    if len(line) > MAX_LINE_BYTES or line[-3:] != END or line[-67 - len(HASH_MARK) : -67] != HASH_MARK:
        return "not a record of this log"
    if line[-67:-3] != _sha256(line[: -67 - len(HASH_MARK) + 1]).hexdigest().encode("ascii"):
        return "its hash does not fit its content: the record was changed"
    if _place(line)[0] != seq:
        return f"it is not record {seq}: a record was removed, inserted or moved"
    if head is not None and line[-TAIL_BYTES + 9 : -TAIL_BYTES + 73] != head:
        return "it does not follow the record before: one was removed, replaced or moved"
    return "not a record of this log"


def _check_statement(line: bytes, seq: int, result: Verification, whole: bool) -> str | None:
    """Compares what a checkpoint or the first record of a segment says about the chains with the chains."""
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "not a record of this log"
    if not isinstance(record, dict):
        return "not a record of this log"
    if record.get("event") == CERTIFIED:
        return _check_certificate(record, seq, result)
    if record.get("event") not in (CHECKPOINT, SEGMENT_CLOSED):
        return None
    heads = _stated_heads(record)
    if heads is None:
        return "its list of the chains' heads cannot be read"
    for kind, head in zip(CLASSES, heads, strict=True):
        known = result.chains.get(kind)
        if known is None:
            result.begins[kind] = (seq, head)
            if whole:
                result.chains[kind] = head
        elif known != head:
            return f"the last '{kind}' record before it was removed, replaced or moved"
    return _check_checkpoint(record, heads, seq, result) if record["event"] == CHECKPOINT else None


def _stated_heads(record: dict[str, Any]) -> Heads | None:
    stated = record.get("heads")
    if not isinstance(stated, dict) or list(stated) != list(CLASSES):
        return None
    try:
        heads = tuple(head.encode("ascii") for head in stated.values())
        heads_digest(heads)
    except (AttributeError, ValueError):
        return None
    return heads if all(len(head) == len(ZERO_HASH) for head in heads) else None


def _check_checkpoint(record: dict[str, Any], heads: Heads, seq: int, result: Verification) -> str | None:
    value, before = record.get("value"), record.get("before")
    if not isinstance(value, str) or not isinstance(before, str):
        return "a checkpoint without its value"
    try:
        start = bytes.fromhex(before)
    except ValueError:
        return "a checkpoint with an unreadable value"
    expected = fold_checkpoint(start, heads_digest(heads))
    if value != expected.hex():
        return "the checkpoint's value does not fit the chain"
    if record.get("reseal") is True:
        result.resealed.append(seq)
    elif result.values and start not in result.values:
        return "the checkpoint does not follow the one before it"
    result.values = [start, expected]
    result.last_checkpoint = seq
    return None


def _check_certificate(record: dict[str, Any], seq: int, result: Verification) -> str | None:
    try:
        attested, signature = (base64.b64decode(record[name], validate=True) for name in ("attested", "signature"))
        value = certificate.certified_value(attested)
    except (KeyError, TypeError, ValueError):
        return "a certificate that cannot be read"
    if result.values and value not in result.values:
        return "the hardware has certified another value than that of the checkpoint before"
    if result.attestation is not None and not verify_signature(attested, signature, result.attestation):
        return "the certificate was not signed by this machine's attestation key"
    result.certified = seq
    return None


def segments(log: Path) -> list[Path]:
    """The plain files of a log, oldest first: closed segments `audit-<first seq>.log`, then the open file."""
    closed = sorted(log.parent.glob(f"{log.stem}-[0-9]*{log.suffix}"))
    return [*closed, log]


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading; anything else, a pipe that would be waited for before all, is refused.

    Raises:
        OSError: it is no regular file, or cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; one that is longer than any record comes in pieces, of which none ends as a record does."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line


def verify_files(files: Iterable[Path], so_far: Verification | None = None) -> Verification:
    """Checks the plain files of a log, oldest first, as one log.

    Raises:
        OSError: a file cannot be read.
    """
    result = so_far or Verification()
    for path in files:
        with open_regular(path) as file:
            result = verify_lines(bounded_lines(file), result)
        if result.problem is not None:
            found = result.problem
            result.problem = Problem(found.line, found.seq, found.text, str(path))
            break
    return result
