"""Archives closed segments of the audit log and removes archives past their retention. Runs in a worker thread.

A power cut at any point loses no record: archives are written before their segment is removed, and the anchor before the
archives are. Interrupted work is done again, and readers of the log expect both cases (`audittrail.whole`).
"""

import re
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO

from cryptography.hazmat.primitives.asymmetric import ec

from audittrail import anchor, archive
from audittrail.anchor import Removed
from audittrail.archive import ArchiveDamaged, Header
from audittrail.chain import APPLICATION, CLASSES, TAIL_BYTES, ZERO_HASH
from audittrail.record import seq_of
from audittrail.verify import open_regular
from audittrail.whole import Entry, Unseal, anchors_path, entries, first_seq_of, plain_files, read_anchors, read_archive
from common.files import fsync_directory, write_atomic

MODE = 0o640
DAY_S = 86_400
_CHUNK_BYTES = 32 * 1024
_LINE = {kind: re.compile(rb'^\{"seq":\d+,"class":"' + kind.encode() + rb'",.*\n', re.MULTILINE) for kind in CLASSES}

RETENTION, SPACE = "retention", "space"


class SegmentDamaged(Exception):
    """A closed segment holds lines that are not records; it stays as it is."""


@dataclass(slots=True)
class _Part:
    """One class's share of a segment."""

    engine: "zlib._Compress" = field(default_factory=lambda: zlib.compressobj(6))
    pieces: list[bytes] = field(default_factory=list)
    records: int = 0
    first: bytes = b""
    last: bytes = b""

    def add(self, lines: list[bytes]) -> None:
        self.records += len(lines)
        self.first = self.first or lines[0]
        self.last = lines[-1]
        self.pieces.append(self.engine.compress(b"".join(lines)))


def archive_segment(
    segment: Path,
    stem: str,
    now: int,
    machine_key: memoryview,
    operator_key: ec.EllipticCurvePublicKey | None,
    pause: Callable[[], None] = lambda: time.sleep(0.001),
) -> list[Path]:
    """Writes a closed segment's archives, one for each class that is in it, and removes the segment.

    Args:
        segment: the closed segment.
        stem: of the log's name.
        now: seconds since 1970 UTC.
        machine_key: 32 bytes.
        operator_key: lets the operator read the archives too.
        pause: called between pieces of the work, so that other threads get the interpreter.

    Raises:
        SegmentDamaged: it holds lines that are not records.
        OSError: it cannot be read, or an archive not be written; the segment stays.
    """
    parts = {kind: _Part() for kind in CLASSES}
    with open_regular(segment) as file:
        for number, chunk in enumerate(iter(lambda: _whole_lines(file), b""), start=1):
            found = 0
            for kind, pattern in _LINE.items():
                lines = pattern.findall(chunk)
                found += sum(map(len, lines))
                if lines:
                    parts[kind].add(lines)
            if found != len(chunk):
                raise SegmentDamaged(f"{segment} holds lines that are not records (piece {number} of {_CHUNK_BYTES} bytes)")
            pause()
    written = []
    for kind, part in parts.items():
        if part.records:
            header = Header(
                kind=kind,
                first_seq=seq_of(part.first),
                last_seq=seq_of(part.last),
                records=part.records,
                prev=part.first[-TAIL_BYTES + 9 : -TAIL_BYTES + 73].decode("ascii"),
                head=part.last[-64 - 3 : -3].decode("ascii"),
                last_time=now,
            )
            data = archive.seal(header, b"".join(part.pieces) + part.engine.flush(), machine_key, operator_key)
            path = segment.with_name(archive.archive_name(stem, header))
            write_atomic(path, data, MODE)
            written.append(path)
    segment.unlink()
    fsync_directory(segment.parent)
    return written


def _whole_lines(file: IO[bytes]) -> bytes:
    chunk = file.read(_CHUNK_BYTES)
    return chunk + file.readline() if chunk and not chunk.endswith(b"\n") else chunk


def archivable(log: Path, last_checkpoint: int) -> list[Path]:
    """The closed segments that may be archived, oldest first.

    The newest stays plain so that yesterday's records are easy to read, and so do those after the last checkpoint, which the
    next start must find without a key.
    """
    closed = plain_files(log)[:-1]
    return [segment for segment, after in pairwise(closed) if 0 < first_seq_of(after) <= last_checkpoint]


@dataclass(frozen=True, slots=True)
class Removal:
    """What retention will remove of one class.

    Attributes:
        anchor: takes the place of the archives; not yet signed.
        paths: the archives.
    """

    anchor: Removed
    paths: tuple[Path, ...]


def plan_removal(
    found: list[Entry], anchors: Mapping[str, Removed], days: Mapping[str, int], budget: int, now: int
) -> list[Removal]:
    """What must be removed, oldest first within each class. Performs no IO.

    Args:
        found: all archives, by number.
        anchors: of what has been removed before.
        days: how long each class is kept.
        budget: bytes that all archives may take; beyond it the oldest `application` records go early.
        now: a time that has certainly been reached, seconds since 1970 UTC: a clock that runs ahead must not remove anything.
    """
    room = budget - sum(entry.size for entry in found)
    plans = []
    for kind in CLASSES:
        doomed: list[Entry] = []
        reason = RETENTION
        for entry in (entry for entry in found if entry.header.kind == kind):
            if entry.header.last_time + days[kind] * DAY_S > now:
                if kind != APPLICATION or room >= 0:
                    break
                reason = SPACE
            room += entry.size
            doomed.append(entry)
        if doomed:
            before = anchors[kind].records if kind in anchors else 0
            newest = doomed[-1].header
            removed = Removed(
                kind, newest.last_seq, newest.head, before + sum(entry.header.records for entry in doomed), now, reason
            )
            plans.append(Removal(removed, tuple(entry.path for entry in doomed)))
    return plans


@dataclass(frozen=True, slots=True)
class Stock:
    """What lies in the log's directory.

    Attributes:
        anchors: by class.
        plans: what must be removed.
        size: bytes of all archives.
    """

    anchors: dict[str, Removed]
    plans: list[Removal]
    size: int


def check_removal(removal: Removal, before: Removed | None, unseal: Unseal) -> None:
    """Compares the archives that must be removed with the anchor that takes their place.

    A header is authentic only once its archive has been unsealed; without this check a forged header would make the agent sign
    for the removal of records that an attacker took away.

    Raises:
        ArchiveDamaged: one was not written by this machine, or does not follow the one before it.
        OSError: one cannot be read.
    """
    head = before.head if before is not None else ZERO_HASH.decode("ascii")
    last_seq, records = 0, before.records if before is not None else 0
    for path in removal.paths:
        header, _ = unseal(read_archive(path))
        if header.kind != removal.anchor.kind or header.prev != head:
            raise ArchiveDamaged(f"{path} does not follow what was removed before it: an archive is missing")
        head, last_seq, records = header.head, header.last_seq, records + header.records
    if (head, last_seq, records) != (removal.anchor.head, removal.anchor.last_seq, removal.anchor.records):
        raise ArchiveDamaged("the archives changed while they were checked")


def take_stock(log: Path, days: Mapping[str, int], budget: int, now: int, identity: bytes | None = None) -> Stock:
    """Reads anchors and archives, and deletes archives that an anchor has already replaced.

    Args:
        log: the open file.
        days: as for `plan_removal`.
        budget: likewise.
        now: likewise.
        identity: public point of the key that must have signed the anchors; None skips that check.

    Raises:
        ArchiveDamaged, OSError, ValueError: as `audittrail.whole.entries` and `read_anchors`.
    """
    anchors = read_anchors(log)
    if identity is not None and not all(anchor.is_signed_by(removed, identity) for removed in anchors.values()):
        raise ValueError(f"{anchors_path(log)} was not signed by this machine; nothing is removed")
    for path in archive.archives(log):
        with open_regular(path) as file:
            header, _ = archive.read_header(file.read(archive.MAX_HEADER_BYTES + 64))
        if header.kind in anchors and header.last_seq <= anchors[header.kind].last_seq:
            path.unlink()
    found = entries(log, anchors)
    return Stock(anchors, plan_removal(found, anchors, days, budget, now), sum(entry.size for entry in found))


def write_anchors(log: Path, anchors: Mapping[str, Removed]) -> None:
    """Makes the anchors durable; only then may `remove` follow."""
    write_atomic(anchors_path(log), anchor.encode(anchors), MODE)


def remove(removal: Removal) -> None:
    """Deletes the archives of a removal."""
    for path in removal.paths:
        path.unlink(missing_ok=True)
    fsync_directory(removal.paths[0].parent)
