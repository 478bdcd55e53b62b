"""Checks a chain of audit records. `verify_lines` performs no IO; `verify_files` reads."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from .chain import CHECKPOINT, END, HASH_MARK, MAX_LINE_BYTES, PREV_MARK, TAIL_BYTES, ZERO_HASH, fold_checkpoint

_sha256 = hashlib.sha256
_MAX_DIGITS = 20
_MARK = f'"event":"{CHECKPOINT}"'.encode()


@dataclass(frozen=True, slots=True)
class Problem:
    """The first place where the chain does not hold.

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
        head: its hash, 64 hex bytes.
        values: the sealed audit value before and after the last checkpoint. Power may fail between log and seal, so
            either may be what is sealed.
        resealed: numbers of the checkpoints that began a new seal, because what was sealed did not fit the log; each
            was alerted when it happened.
        last_checkpoint: number of the last checkpoint; 0 if there is none.
        problem: None if all records hold.
    """

    records: int = 0
    first_seq: int = 0
    last_seq: int = 0
    head: bytes = ZERO_HASH
    values: list[bytes] = field(default_factory=list)
    resealed: list[int] = field(default_factory=list)
    last_checkpoint: int = 0
    problem: Problem | None = None

    @property
    def ok(self) -> bool:
        """Whether all records hold."""
        return self.problem is None


def verify_lines(lines: Iterable[bytes], so_far: Verification | None = None) -> Verification:
    """Checks lines (with their line breaks), going on from `so_far` if given.

    A chain need not begin with record 1: what retention removed is gone, and its last hash stands in the first line's
    `prev`.
    """
    result = so_far or Verification()
    seq, head, number = result.last_seq, result.head, 0
    started = result.records > 0
    for number, line in enumerate(lines, start=1):
        if not started:
            seq, head = _start(line)
            result.first_seq = seq + 1
            started = True
        seq += 1
        body = line[:-67]
        if (
            len(line) <= MAX_LINE_BYTES
            and line[-67:-3] == _sha256(line[: -67 - len(HASH_MARK) + 1]).hexdigest().encode("ascii")
            and line[-TAIL_BYTES : -TAIL_BYTES + 9] == PREV_MARK
            and line[-TAIL_BYTES + 9 : -TAIL_BYTES + 73] == head
            and line.startswith(b'{"seq":%d,' % seq)
            and line[-3:] == END
            and body[-len(HASH_MARK) :] == HASH_MARK
        ):
            head = line[-67:-3]
            if _MARK in line:
                text = _check_checkpoint(line, seq, result)
                if text is None:
                    continue
                result.problem = Problem(number, seq, text)
                break
            continue
        result.problem = Problem(number, seq, _why(line, seq, head))
        break
    good = seq if result.problem is None else seq - 1
    result.records += max(good - max(result.last_seq, result.first_seq - 1), 0)
    result.last_seq, result.head = good, head
    return result


def _start(line: bytes) -> tuple[int, bytes]:
    """What must have come before the first line that is there."""
    number = line[7 : line.find(b",", 7, 7 + _MAX_DIGITS)]
    if not number.isdigit() or int(number) <= 1:
        return 0, ZERO_HASH
    return int(number) - 1, line[-TAIL_BYTES + 9 : -TAIL_BYTES + 73]


def _why(line: bytes, seq: int, head: bytes) -> str:
    if not line.endswith(b"\n"):
        return "the line is cut short"
    if len(line) > MAX_LINE_BYTES or line[-3:] != END or line[-67 - len(HASH_MARK) : -67] != HASH_MARK:
        return "not a record of this log"
    if line[-67:-3] != _sha256(line[: -67 - len(HASH_MARK) + 1]).hexdigest().encode("ascii"):
        return "its hash does not fit its content: the record was changed"
    if not line.startswith(b'{"seq":%d,' % seq):
        return f"it is not record {seq}: a record was removed, inserted or moved"
    if line[-TAIL_BYTES + 9 : -TAIL_BYTES + 73] != head:
        return "it does not follow the record before: one was removed, replaced or moved"
    return "not a record of this log"


def _check_checkpoint(line: bytes, seq: int, result: Verification) -> str | None:
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "not a record of this log"
    if not isinstance(record, dict):
        return "not a record of this log"
    if record.get("event") != CHECKPOINT:
        return None
    value, before = record.get("value"), record.get("before")
    if not isinstance(value, str) or not isinstance(before, str):
        return "a checkpoint without its value"
    try:
        expected = fold_checkpoint(bytes.fromhex(before), record["prev"].encode())
    except ValueError:
        return "a checkpoint with an unreadable value"
    if value != expected.hex():
        return "the checkpoint's value does not fit the chain"
    start = bytes.fromhex(before)
    if record.get("reseal") is True:
        result.resealed.append(seq)
    elif result.values and start not in result.values:
        return "the checkpoint does not follow the one before it"
    result.values = [start, expected]
    result.last_checkpoint = seq
    return None


def segments(log: Path) -> list[Path]:
    """The files of a log, oldest first: closed segments `audit-<first seq>.log`, then the open file."""
    closed = sorted(log.parent.glob(f"{log.stem}-[0-9]*{log.suffix}"))
    return [*closed, log]


def verify_files(files: Iterable[Path]) -> Verification:
    """Checks the files of a log, oldest first, as one chain.

    Raises:
        OSError: a file cannot be read.
    """
    result = Verification()
    for path in files:
        with path.open("rb") as file:
            result = verify_lines(file, result)
        if result.problem is not None:
            found = result.problem
            result.problem = Problem(found.line, found.seq, found.text, str(path))
            break
    return result
