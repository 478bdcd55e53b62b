"""Checks a whole log: archives first, then the closed segments, then the open file. Reads files; writes no file."""

import heapq
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import msgspec

from . import anchor, archive
from .anchor import Removed
from .archive import ArchiveDamaged, Header
from .chain import CLASSES
from .verify import Problem, Verification, bounded_lines, open_regular, segments, seq_of, verify_files, verify_lines

Unseal = Callable[[bytes], tuple[Header, bytes]]
"""Header and zlib stream of an archive's bytes; raises ArchiveDamaged."""

ANCHORS_SUFFIX = ".anchors"


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
        return anchor.decode(anchors_path(log).read_bytes())
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
    """The archives that belong to the log, by number.

    Not those that an anchor has replaced already (power failed before they were deleted), nor those of a segment that is
    still there (power failed before it was).

    Raises:
        ArchiveDamaged: a header cannot be read; the text names the file.
        OSError: a file cannot be read.
    """
    plain = plain_files(log)
    end = first_seq_of(plain[0]) if plain else 0
    found = []
    for path in archive.archives(log):
        with open_regular(path) as file:
            front = file.read(archive.MAX_HEADER_BYTES + 64)
        try:
            header, _ = archive.read_header(front)
        except ArchiveDamaged as error:
            raise ArchiveDamaged(f"{path}: {error}") from None
        removed = anchors.get(header.kind)
        if (removed is None or header.first_seq > removed.last_seq) and (not end or header.first_seq < end):
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


def _class_lines(found: list[Entry], unseal: Unseal) -> Iterator[tuple[int, Path, int, bytes]]:
    for entry in found:
        try:
            header, compressed = unseal(read_archive(entry.path))
            if header != entry.header:
                raise ArchiveDamaged("the archive changed while it was read")
            for number, line in enumerate(archive.lines(compressed), start=1):
                yield seq_of(line), entry.path, number, line
        except ArchiveDamaged as error:
            raise ArchiveDamaged(f"{entry.path}: {error}") from None


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


def verify_log(log: Path, unseal: Unseal | None, identity: bytes | None, attestation: bytes | None = None) -> Verification:
    """Checks all that is there of a log.

    Args:
        log: the open file.
        unseal: opens archives; None leaves them out, so that the chains may begin later than an anchor says.
        identity: public point of the machine's identity key, for the anchors' signatures; None if it is not known.
        attestation: public point of its attestation key, for the certificates of checkpoints; None if it is not known.

    Raises:
        OSError: a file cannot be read.
    """
    result = Verification(attestation=attestation)
    if unseal is not None:
        try:
            anchors = read_anchors(log)
            result = _verify_archived(entries(log, anchors), unseal, result)
        except (ArchiveDamaged, ValueError) as error:
            result.problem = Problem(0, result.last_seq + 1, str(error))
    if result.problem is None:
        result = _verify_plain(log, result)
    if result.problem is None and unseal is not None:
        text = anchor.check(result, anchors, identity)
        if text is not None:
            result.problem = Problem(0, result.first_seq, text, str(anchors_path(log)))
    return result


def _verify_archived(found: list[Entry], unseal: Unseal, result: Verification) -> Verification:
    place: list[tuple[Path, int]] = [(Path(), 0)]

    def archived() -> Iterator[bytes]:
        for _, path, number, line in archived_lines(found, unseal):
            place[0] = (path, number)
            yield line

    try:
        result = verify_lines(archived(), result, whole=False)
    except ArchiveDamaged as error:
        result.problem = Problem(0, result.last_seq + 1, str(error))
    else:
        if result.problem is not None:
            problem = result.problem
            result.problem = Problem(place[0][1], problem.seq, problem.text, str(place[0][0]))
    return result


def _verify_plain(log: Path, result: Verification) -> Verification:
    files = plain_files(log)
    if result.records == 0 or not files:
        return verify_files(files, result)
    # Of the archived records some classes may have been removed: there the numbers may jump, the chains may not.
    with open_regular(files[0]) as file:
        lines = bounded_lines(file)
        result = verify_lines(islice(lines, 1), result, whole=False)
        if result.problem is None:
            result = verify_lines(lines, result)
            if result.problem is not None:
                found = result.problem
                result.problem = Problem(found.line + 1, found.seq, found.text)
    if result.problem is not None:
        found = result.problem
        result.problem = Problem(found.line, found.seq, found.text, str(files[0]))
        return result
    return verify_files(files[1:], result)
