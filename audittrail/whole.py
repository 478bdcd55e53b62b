"""Finds the parts of a log: anchors, archives, closed segments, then the open file. Reads files; writes no file."""

import heapq
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from . import anchor, archive
from .anchor import Removed
from .archive import ArchiveDamaged, Header
from .chain import CLASSES
from .record import seq_of
from .verify import bounded_lines, open_regular, segments

Unseal = Callable[[bytes], tuple[Header, bytes]]
"""Header and zlib stream of an archive's bytes; raises ArchiveDamaged."""

ANCHORS_SUFFIX = ".anchors"
MAX_ANCHORS_BYTES = 64 * 1024


class Entry(msgspec.Struct, frozen=True):
    """An archive that belongs to the log.

    Attributes:
        path: the file.
        size: its bytes.
        header: what it says it holds.
    """

    path: Path
    size: int
    header: Header


def anchors_path(log: Path) -> Path:
    """The file of a log's anchors."""
    return log.with_suffix(ANCHORS_SUFFIX)


def read_anchors(log: Path) -> dict[str, Removed]:
    """The anchors of a log, by class; none if there is no such file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a file of anchors.
    """
    try:
        # A pipe in the place of the file would be waited for.
        with open_regular(anchors_path(log)) as file:
            return anchor.decode(file.read(MAX_ANCHORS_BYTES))
    except FileNotFoundError:
        return {}


def plain_files(log: Path) -> list[Path]:
    """Closed segments, oldest first, then the open file; those that are there."""
    return [path for path in segments(log) if path.exists()]


def first_seq_of(path: Path) -> int:
    """Number of the first record in a plain file; 0 if it has none."""
    with open_regular(path) as file:
        return seq_of(file.readline(64))


def entries(log: Path, anchors: Mapping[str, Removed]) -> list[Entry]:
    """The archives that belong to the log, by number: those of `all_entries` that are not `is_left_over`.

    Raises:
        ArchiveDamaged, OSError: as `all_entries`.
    """
    end = beginning(log)
    return [entry for entry in all_entries(log) if not is_left_over(entry, anchors, end)]


def beginning(log: Path) -> int:
    """Number of the first record that is in a plain file; 0 if there is none."""
    plain = plain_files(log)
    return first_seq_of(plain[0]) if plain else 0


def is_left_over(entry: Entry, anchors: Mapping[str, Removed], end: int) -> bool:
    """Whether an archive does not count.

    That is so if an anchor has replaced it already (power failed before it was deleted), or if its segment is still there
    (power failed before that was).

    Args:
        entry: the archive.
        anchors: by class.
        end: number of the first record in a plain file; 0 if there is none.
    """
    removed = anchors.get(entry.header.kind)
    return (removed is not None and entry.header.first_seq <= removed.last_seq) or 0 < end <= entry.header.first_seq


def all_entries(log: Path) -> list[Entry]:
    """All archives beside the log, by number.

    Raises:
        ArchiveDamaged: a header cannot be read; the text names the file.
        OSError: a file cannot be read.
    """
    found = []
    for path in archive.archives(log):
        with open_regular(path) as file:
            front = file.read(archive.MAX_HEADER_BYTES + 64)
        try:
            header, _ = archive.read_header(front)
        except ArchiveDamaged as error:
            raise ArchiveDamaged(f"{path}: {error}") from None
        found.append(Entry(path, path.stat().st_size, header))
    return sorted(found, key=lambda entry: entry.header.first_seq)


def read_archive(path: Path) -> bytes:
    """An archive's bytes.

    Raises:
        ArchiveDamaged: it is larger than any archive.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        data = file.read(archive.MAX_ARCHIVE_BYTES + 1)
    if len(data) > archive.MAX_ARCHIVE_BYTES:
        raise ArchiveDamaged("the archive is larger than any that was written")
    return data


def entry_lines(entry: Entry, unseal: Unseal) -> Iterator[bytes]:
    """The lines of one archive.

    Raises:
        WrongKey: `unseal` does not open it; the text names the file.
        ArchiveDamaged: it cannot be read; the text names the file.
        OSError: likewise.
    """
    try:
        header, compressed = unseal(read_archive(entry.path))
        if header != entry.header:
            raise ArchiveDamaged("the archive changed while it was read")
        yield from archive.lines(compressed)
    except ArchiveDamaged as error:
        raise type(error)(f"{entry.path}: {error}") from None


def _class_lines(found: list[Entry], unseal: Unseal) -> Iterator[tuple[int, Path, int, bytes]]:
    for entry in found:
        for number, line in enumerate(entry_lines(entry, unseal), start=1):
            yield seq_of(line), entry.path, number, line


def archived_lines(found: list[Entry], unseal: Unseal) -> Iterator[tuple[int, Path, int, bytes]]:
    """All archived records in the order in which they were written: number, file, line number, line.

    Raises:
        ArchiveDamaged: an archive cannot be read; the text names the file.
        OSError: a file cannot be read.
    """
    by_class = [[entry for entry in found if entry.header.kind == kind] for kind in CLASSES]
    yield from heapq.merge(*(_class_lines(part, unseal) for part in by_class), key=lambda item: item[0])


def lines_after(log: Path, after_seq: int, unseal: Unseal) -> Iterator[bytes]:
    """The records with numbers above `after_seq`, oldest first, archived ones too.

    Raises:
        ArchiveDamaged, OSError, ValueError: as the functions above.
    """
    found = [entry for entry in entries(log, read_anchors(log)) if entry.header.last_seq > after_seq]
    for seq, _, _, line in archived_lines(found, unseal):
        if seq > after_seq:
            yield line
    files = plain_files(log)
    for path, following in zip(files, [*files[1:], None], strict=True):
        if following is not None and 0 < first_seq_of(following) <= after_seq + 1:
            continue
        with open_regular(path) as file:
            for line in bounded_lines(file):
                if seq_of(line) > after_seq:
                    yield line
