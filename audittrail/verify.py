"""Checks chains of audit records. `verify_lines` performs no IO; `verify_files` reads."""

import base64
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from . import certificate
from .chain import (
    CERTIFIED,
    CHECKPOINT,
    CLASSES,
    MAX_LINE_BYTES,
    NO_HEADS,
    SECURITY,
    SEGMENT_CLOSED,
    ZERO_HASH,
    Heads,
    fold_checkpoint,
    heads_digest,
)
from .record import HASH, PREV, read, seq_of, why_not
from .signature import verify_signature

_NOTHING_SEALED = bytes(32)
_STATEMENTS = frozenset({CHECKPOINT, SEGMENT_CLOSED, CERTIFIED})


@dataclass(frozen=True, slots=True)
class Problem:
    """The first place where the log is not intact.

    Attributes:
        line: line number in its file, from 1; counted over all files by `verify_lines`; 0 if it is no single line.
        seq: the number that the record should have.
        text: what is wrong.
        file: where; empty where only lines were given.
        missing: whether records seem to be missing there, rather than changed.
    """

    line: int
    seq: int
    text: str
    file: str = ""
    missing: bool = False

    def __str__(self) -> str:
        line = f"line {self.line}" if self.line else ""
        where = ", ".join(part for part in (self.file, line) if part) or "the log"
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
        checkpoints: for the number of each checkpoint, SHA-256 over the heads that it states (64 hex characters), and its time.
        tail_begins: number of the first record after that certificate; 0 if there is none.
        tail_time: its time; empty if it is not there.
        last_time: the time of the last record that holds, as the log writes it.
        certified: number of the last record that holds a certificate of the value; 0 if there is none.
        certificates: how many records hold one.
        covered: number of the last checkpoint whose value a certificate states: all records before it hang on the hardware's
            signature; 0 if there is none.
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
    checkpoints: dict[int, tuple[str, str]] = field(default_factory=dict)
    last_time: str = ""
    certified: int = 0
    certificates: int = 0
    covered: int = 0
    tail_begins: int = 0
    tail_time: str = ""
    attestation: bytes | None = None
    problem: Problem | None = None

    @property
    def ok(self) -> bool:
        """Whether the records that were given hold. It says nothing of records that were not; `audittrail.report` does."""
        return self.problem is None

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
    chains, good, records = result.chains, None, result.records
    try:
        for number, line in enumerate(lines, start=1):
            record = read(line)
            seq = seq_of(line) if record is None else record["seq"]
            if not records:
                _begin(result, seq, whole)
                chains = result.chains
            kind = "" if record is None else record["class"]
            expected = chains.get(kind)
            wanted = result.last_seq + 1 if whole or seq <= result.last_seq else seq
            if record is None or seq != wanted or (expected is not None and line[PREV] != expected):
                result.problem = Problem(number, wanted, _why(line, record, wanted), missing=record is not None)
                break
            event = record.get("event")
            if type(event) is str and event in _STATEMENTS:
                text = _check_statement(record, seq, result, whole)
                if text is not None:
                    result.problem = Problem(number, seq, text)
                    break
            if expected is None:
                result.begins[kind] = (seq, line[PREV])
            chains[kind] = line[HASH]
            records += 1
            result.last_seq = seq
            good = record
            if seq == result.tail_begins:
                result.tail_time = str(record.get("time"))
    finally:
        result.records = records
        if good is not None:
            result.last_time = str(good.get("time"))
    return result


def _begin(result: Verification, seq: int, whole: bool) -> None:
    """What must have come before the first line that is there."""
    if seq <= 1 and whole:
        result.chains = dict(zip(CLASSES, NO_HEADS, strict=True))
    result.first_seq, result.last_seq = max(seq, 1), max(seq, 1) - 1


def _why(line: bytes, record: dict[str, Any] | None, wanted: int) -> str:
    if record is None:
        return why_not(line)
    if record["seq"] != wanted:
        return f"it is not record {wanted}: a record was removed, inserted or moved"
    return "it does not follow the record before: one was removed, replaced or moved"


def _check_statement(record: dict[str, Any], seq: int, result: Verification, whole: bool) -> str | None:
    """Compares what a checkpoint or the first record of a segment says about the chains with the chains."""
    if record["event"] == CERTIFIED:
        return _check_certificate(record, seq, result)
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
    digest = heads_digest(heads)
    expected = fold_checkpoint(start, digest)
    if value != expected.hex():
        return "the checkpoint's value does not fit the chain"
    if record.get("reseal") is True:
        result.resealed.append(seq)
    elif not result.values and _is_first(result) and start != _NOTHING_SEALED:
        return "the log's first checkpoint follows another one: what came before it was replaced"
    elif result.values and start not in result.values:
        return "the checkpoint does not follow the one before it"
    result.values = [start, expected]
    result.last_checkpoint = seq
    result.checkpoints[seq] = (digest.hex(), str(record.get("time")))
    return None


def _is_first(result: Verification) -> bool:
    """Whether no checkpoint can have been before the first one that was seen: its chain is here from its first record."""
    begin = result.begins.get(SECURITY)
    return begin[1] == ZERO_HASH if begin is not None else SECURITY in result.chains


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
    result.certified, result.certificates = seq, result.certificates + 1
    if result.values and value == result.values[-1]:
        # Only this value depends on the chains; the one before a checkpoint is what that checkpoint says it was.
        result.covered, result.tail_begins, result.tail_time = result.last_checkpoint, seq + 1, ""
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
    return iter(partial(file.readline, MAX_LINE_BYTES + 1), b"")


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
            result.problem = replace(found, file=str(path))
            break
    return result
