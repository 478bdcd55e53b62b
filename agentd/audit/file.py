"""Appends to the audit log's files, rotates them and finds their end. `audittrail` defines the form of the chain."""

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from audittrail.archive import ArchiveDamaged
from audittrail.chain import CLASSES, MAX_LINE_BYTES, ZERO_HASH, Heads
from audittrail.record import seq_of
from audittrail.rotated import hint
from audittrail.verify import Verification, open_regular, verify_files
from audittrail.whole import entries, first_seq_of, plain_files, read_anchors
from common.files import fsync_directory, naming

MODE = 0o640
_DAY = re.compile(rb'"time":"([0-9-]{10})T')


class AuditDamaged(Exception):
    """The end of the log does not verify; the text says where."""


@dataclass(frozen=True, slots=True)
class End:
    """Where a chain stands.

    Attributes:
        seq: number of the last record.
        heads: hash of the last record of each class.
        checked: what the check of the open file and the one before found.
        torn: bytes of an unfinished line that were moved aside.
    """

    seq: int
    heads: Heads
    checked: Verification
    torn: int


class AuditFile:
    """The open file of the log.

    Args:
        path: `audit.log`; closed segments lie beside it as `audit-<first seq>.log`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._size = 0
        self._first_seq = 1
        self._day = ""

    def open(self) -> End:
        """Opens for appending and checks the newest part of the log: two files, or more until a checkpoint is among them.

        A power cut leaves a last line without its line break; that line is moved to `audit.log.torn`.

        Raises:
            AuditDamaged: the open file, or the segment before it, does not verify.
            OSError: the file cannot be opened.
        """
        torn = self._set_torn_line_aside()
        checked = self._check_newest()
        if checked.problem is not None:
            raise AuditDamaged(f"{checked.problem}{hint(self.path) if checked.problem.missing else ''}")
        self._open_for_append()
        self._first_seq = self._first_of_open_file(checked.last_seq)
        return End(checked.last_seq, self._heads(checked), checked, torn)

    def _check_newest(self) -> Verification:
        files, count = plain_files(self.path), 2
        while True:
            checked = verify_files(files[-count:])
            if checked.problem is not None or count >= len(files) or (checked.last_checkpoint and self._knows_all(checked)):
                return checked
            count *= 2

    def _knows_all(self, checked: Verification) -> bool:
        return len(checked.chains) == len(CLASSES)

    def _heads(self, checked: Verification) -> Heads:
        """Where the chains end; the chain of a class without recent records may end in an archive or at an anchor."""
        chains = dict(checked.chains)
        if not self._knows_all(checked):
            try:
                anchors = read_anchors(self.path)
                found = entries(self.path, anchors)
            except (ArchiveDamaged, ValueError) as error:
                raise AuditDamaged(str(error)) from None
            older = {kind: removed.head.encode() for kind, removed in anchors.items()}
            older |= {entry.header.kind: entry.header.head.encode() for entry in found}
            chains = older | chains
        return tuple(chains.get(kind, ZERO_HASH) for kind in CLASSES)

    def _open_for_append(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, MODE)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", str(self.path))
            os.fchmod(descriptor, MODE)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._size = descriptor, info.st_size

    def _first_of_open_file(self, last_seq: int) -> int:
        with open_regular(self.path) as file:
            found = _DAY.search(file.readline(128))
        self._day = found.group(1).decode() if found else ""
        return first_seq_of(self.path) or last_seq + 1

    def is_of_another_day(self, today: str) -> bool:
        """Whether the open file begins with a record of another day than `today` (YYYY-MM-DD, UTC)."""
        if not self._day and self._size:
            self._first_of_open_file(0)
        return bool(self._day) and self._day != today

    def _set_torn_line_aside(self) -> int:
        if not self.path.exists():
            return 0
        open_regular(self.path).close()
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            window = min(size, 64 * 1024)
            file.seek(size - window)
            tail = file.read(window)
            torn = len(tail) - (tail.rfind(b"\n") + 1)
            if torn:
                aside = self.path.with_name(self.path.name + ".torn")
                with open(aside, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, MODE)) as keep:
                    keep.write(tail[-torn:] + b"\n")
                file.truncate(size - torn)
                os.fsync(file.fileno())
            return torn

    @property
    def size(self) -> int:
        """Bytes in the open file."""
        return self._size

    def look(self) -> str | None:
        """What another program did to the open file, None if nothing; goes on with the file that is at the path now.

        Raises:
            OSError: no file is at the path, and none can be created.
        """
        ours = os.fstat(self._descriptor)
        try:
            found = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is None or (found.st_ino, found.st_dev) != (ours.st_ino, ours.st_dev):
            # The old file is closed last: its number may become a connection's the next moment.
            old = self._descriptor
            self._open_for_append()
            os.close(old)
            return f"{self.path} was removed or replaced{hint(self.path)}"
        if ours.st_size != self._size:
            lost, self._size = self._size - ours.st_size, ours.st_size
            if lost > 0:
                return f"{self.path} was cut short by {lost} bytes{hint(self.path)}"
            return f"{-lost} bytes were added to {self.path} by another program"
        return None

    def write(self, data: bytes) -> None:
        """Appends whole lines in one write.

        Raises:
            OSError: the disk does not take them; none of their bytes stay.
        """
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            error.filename = str(self.path)
            raise
        if written != len(data):
            os.ftruncate(self._descriptor, self._size)
            raise OSError(errno.ENOSPC, "no space left for the audit log", str(self.path))
        self._size += written

    def sync(self) -> None:
        """Returns once everything written is durable."""
        # A duplicate: another thread may rotate meanwhile.
        descriptor = os.dup(self._descriptor)
        try:
            with naming(self.path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rotate(self, next_seq: int) -> Path:
        """Closes the open file as a segment and begins another; returns the segment's path.

        Raises:
            OSError: it could not; the file goes on as before.
        """
        # Its name is by its first record. That is not the one that it began with, if another program has moved the file away.
        first = first_seq_of(self.path) or self._first_seq
        segment = self.path.with_name(f"{self.path.stem}-{first:012d}{self.path.suffix}")
        if segment.exists():
            raise FileExistsError(errno.EEXIST, "a segment of this name exists", str(segment))
        self.sync()
        old, old_size = self._descriptor, self._size
        self.path.rename(segment)
        try:
            self._open_for_append()
        except OSError:
            # Back to the old file, which is still open.
            segment.rename(self.path)
            self._descriptor, self._size = old, old_size
            raise
        os.close(old)
        self._first_seq, self._day = next_seq, ""
        fsync_directory(self.path.parent)
        return segment

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def tail_lines(path: Path, after_seq: int, limit: int, room: int) -> list[bytes]:
    """The newest lines of a log with numbers above `after_seq`, oldest first; archived ones are not among them.

    Args:
        path: `audit.log`.
        after_seq: only later records; negative for any.
        limit: the most lines.
        room: the most bytes.
    """
    found: list[bytes] = []
    for name in reversed(plain_files(path)):
        with open_regular(name) as file:
            # From the end, and no more than the caller can take.
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - room - MAX_LINE_BYTES)
            file.seek(start)
            lines = file.read(size - start).splitlines(keepends=True)
        for line in reversed(lines[1:] if start else lines):
            if seq_of(line) <= after_seq or len(found) >= limit or room < len(line):
                return found[::-1]
            found.append(line)
            room -= len(line)
    return found[::-1]
