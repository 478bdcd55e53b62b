"""Checks a whole log: anchors, archives, closed segments, then the open file. Reads files; writes no file.

A step that cannot be made leaves a `Gap` in the report. No step is left out without one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from . import anchor
from .anchor import Removed
from .archive import ArchiveDamaged, WrongKey
from .chain import ZERO_HASH
from .report import Gap, Head, Keys, Report
from .rotated import hint
from .verify import Verification, bounded_lines, open_regular, verify_files, verify_lines
from .whole import (
    Entry,
    Unseal,
    all_entries,
    anchors_path,
    archived_lines,
    beginning,
    entry_lines,
    is_left_over,
    plain_files,
    read_anchors,
)

MAX_TAIL_S = 2 * 3600
"""Seconds of records after the last certificate that are usual: the agent makes a checkpoint each hour in which it logs."""
_ZERO = ZERO_HASH.decode("ascii")


def verify_log(log: Path, keys: Keys, head: Head | None = None, *, open_end: bool = False) -> Report:
    """Checks all that there is of a log.

    Args:
        log: the open file.
        keys: what is not given is not checked, and the report says so.
        head: of the log, from the license server.
        open_end: whether the caller does without one; the report then says that the end is open.

    Raises:
        OSError: a file cannot be read.
    """
    report = Report(Verification(attestation=keys.attestation))
    try:
        anchors, beside = read_anchors(log), all_entries(log)
    except (ArchiveDamaged, ValueError) as error:
        report.fail(str(error), anchors_path(log) if isinstance(error, ValueError) else None)
        return report
    end = beginning(log)
    found = [entry for entry in beside if not is_left_over(entry, anchors, end)]
    opened = _check_archives(found, keys.unseal, report)
    if report.problem is None:
        _check_plain(log, report, joined=opened)
    if report.problem is not None and report.problem.missing:
        report.found.problem = replace(report.problem, text=report.problem.text + hint(log))
    if report.problem is None:
        _check_anchors(log, anchors, keys.identity, report)
    if report.problem is None:
        _check_whole(log, found, beside, anchors, report, opened=opened)
    if report.problem is None:
        _check_head(found, report, head, open_end=open_end, opened=opened)
    if report.problem is None:
        _check_certificates(report, keys.attestation)
    return report


def _check_archives(found: list[Entry], unseal: Unseal | None, report: Report) -> bool:
    """Checks the archived records; returns whether all could be opened, so that the plain files can go on from them."""
    if not found:
        return True
    last = max(entry.header.last_seq for entry in found)
    what = f"what is in {count(len(found), 'archive')} (records {found[0].header.first_seq} to {last})"
    if unseal is None:
        report.gaps.append(Gap(what, "the archive key (--archive-key)"))
        return False
    try:
        _verify_together(found, unseal, report)
    except WrongKey:
        report.found = Verification(attestation=report.found.attestation)
        _verify_each(found, unseal, what, report)
        return False
    if report.problem is None:
        report.checked.append(what)
    return True


def _verify_together(found: list[Entry], unseal: Unseal, report: Report) -> None:
    """Checks the archives as one log. Raises WrongKey."""
    place: list[tuple[Path, int]] = [(Path(), 0)]

    def archived() -> Iterator[bytes]:
        for _, path, number, line in archived_lines(found, unseal):
            place[0] = (path, number)
            yield line

    try:
        verify_lines(archived(), report.found, whole=False)
    except WrongKey:
        raise
    except ArchiveDamaged as error:
        report.fail(str(error))
        return
    if report.problem is not None:
        report.found.problem = replace(report.problem, line=place[0][1], file=str(place[0][0]))


def _verify_each(found: list[Entry], unseal: Unseal, what: str, report: Report) -> None:
    """Checks each archive by itself, because the key does not open all of them."""
    closed = []
    for entry in found:
        try:
            alone = verify_lines(entry_lines(entry, unseal), whole=False)
        except WrongKey:
            closed.append(entry)
        except ArchiveDamaged as error:
            report.fail(str(error))
            return
        else:
            if alone.problem is not None:
                report.found.problem = replace(alone.problem, file=str(entry.path))
                return
    without = [entry for entry in closed if entry.header.operator is None]
    if len(closed) == len(found) != len(without):
        report.gaps.append(Gap(f"{what}: the archive key opens none of them", "the key that [audit] archive_key belongs to"))
    elif len(closed) != len(without):
        damaged = next(entry for entry in closed if entry.header.operator is not None)
        report.fail("the archive was changed, or made for another key than the other archives", damaged.path)
    else:
        names = ", ".join(entry.path.name for entry in without[:3]) + (", …" if len(without) > 3 else "")
        report.gaps.append(
            Gap(
                f"what is in {count(len(without), 'archive')} written without [audit] archive_key ({names})",
                "the machine's own key ('license-agent-cli audit verify' on the machine)",
            )
        )


def _check_plain(log: Path, report: Report, *, joined: bool) -> None:
    """Checks the plain files; `joined` if all that is before them has been checked."""
    files, result = plain_files(log), report.found
    if joined and result.records and files:
        # Of the archived records some classes may have been removed: there the numbers may jump, the chains may not.
        with open_regular(files[0]) as file:
            lines = bounded_lines(file)
            verify_lines(islice(lines, 1), result, whole=False)
            if result.problem is None:
                verify_lines(lines, result)
                if result.problem is not None:
                    result.problem = replace(result.problem, line=result.problem.line + 1)
        if result.problem is not None:
            result.problem = replace(result.problem, file=str(files[0]))
            return
        files = files[1:]
    verify_files(files, result)


def _check_whole(
    log: Path, found: list[Entry], beside: list[Entry], anchors: Mapping[str, Removed], report: Report, *, opened: bool
) -> None:
    """Checks that the parts fit together, and that each number up to the last is accounted for. Needs no key."""
    result = report.found
    heads = {kind: (removed.head, removed.last_seq) for kind, removed in anchors.items()}
    for entry in found:
        header = entry.header
        head, last_seq = heads.get(header.kind, (_ZERO, 0))
        if header.prev != head or header.first_seq <= last_seq or header.records > header.last_seq - header.first_seq + 1:
            report.fail(_missing(header.kind, header.first_seq, last_seq, anchors.get(header.kind), log), entry.path)
            return
        heads[header.kind] = (header.head, header.last_seq)
    # What was archived and opened is in the chains already: they begin where retention stopped.
    before = {kind: (removed.head, removed.last_seq) for kind, removed in anchors.items()} if opened else heads
    for kind, (seq, prev) in sorted(result.begins.items()):
        head, last_seq = before.get(kind, (_ZERO, 0))
        if prev.decode("ascii") != head:
            report.fail(_missing(kind, seq, last_seq, anchors.get(kind), log), log, seq)
            return
    archived = 0 if opened else sum(entry.header.records for entry in found)
    accounted = sum(removed.records for removed in anchors.values()) + archived + result.records
    beyond = [entry.header.last_seq for entry in beside] + [removed.last_seq for removed in anchors.values()]
    last = max([result.last_seq, *beyond])
    if found and not beginning(log):
        report.fail(
            "there are archives, but no record after them: the agent never archives its newest segment" + hint(log), log
        )
    elif last > result.last_seq:
        text = f"the log ends with record {result.last_seq}, but an archive or anchor beside it tells of record {last}"
        report.fail(text + hint(log), log)
    elif accounted != result.last_seq:
        text = f"of {result.last_seq} records {accounted} are here, in archives or accounted for by anchors"
        report.fail(text + hint(log), log)
    elif result.records == 0:
        report.gaps.append(Gap("anything: there are no records", f"the records: {log} and what lay beside it"))


def _missing(kind: str, seq: int, last_seq: int, removed: Removed | None, log: Path) -> str:
    if removed is not None and removed.last_seq == last_seq:
        text = f"the '{kind}' records between record {last_seq}, where retention stopped, and {seq} are missing"
    elif last_seq:
        text = f"the '{kind}' records between record {last_seq}, the last in an archive, and {seq} are missing or doubled"
    else:
        text = f"the '{kind}' records before record {seq} are missing, and no anchor says that retention removed them"
    return text + hint(log)


def _check_anchors(log: Path, anchors: Mapping[str, Removed], identity: bytes | None, report: Report) -> None:
    if not anchors:
        return
    removed_records = sum(removed.records for removed in anchors.values())
    what = f"that retention removed {removed_records} records (the signatures in {anchors_path(log).name})"
    if identity is None:
        report.gaps.append(Gap(what, "the machine's identity key (--identity-key, or --head)"))
        return
    for kind, removed in sorted(anchors.items()):
        if not anchor.is_signed_by(removed, identity):
            report.fail(f"the anchor of the '{kind}' records was not signed by this machine's identity key", anchors_path(log))
            return
    report.checked.append(what)


def _check_head(found: list[Entry], report: Report, head: Head | None, *, open_end: bool, opened: bool) -> None:
    result = report.found
    if head is None:
        if not open_end:
            needs = "--head FILE (from 'license-server audit-head'), or --open-end to do without"
            report.gaps.append(Gap(f"that the log did not go on after record {result.last_seq}", needs))
        return
    what = f"the head at record {head.seq} ({head.source})"
    if result.last_seq < head.seq:
        text = f"the log ends with record {result.last_seq}, but it had record {head.seq} ({head.source}): its end is missing"
        report.fail(text)
    elif head.seq in result.checkpoints:
        if result.checkpoints[head.seq][0] != head.digest:
            report.fail(f"the records up to it are not those of the head ({head.source})", seq=head.seq)
        else:
            report.checked.append(what)
            report.acknowledged = head.seq
    elif not opened and head.seq <= max(entry.header.last_seq for entry in found):
        report.gaps.append(Gap(f"{what}: it is in an archive", "the archive key (--archive-key), or a newer head"))
    elif head.seq < result.first_seq or (result.checkpoints and head.seq < min(result.checkpoints)):
        report.gaps.append(Gap(f"{what}: retention has removed it", "a newer head"))
    else:
        report.fail(f"it is not the checkpoint that the head tells of ({head.source})", seq=head.seq)


def _check_certificates(report: Report, attestation: bytes | None) -> None:
    result = report.found
    if not result.records:
        return
    what = f"that this machine made the log ({count(result.certificates, 'certificate')} of checkpoints)"
    if attestation is None:
        report.gaps.append(Gap(what, "the machine's attestation key (--attestation-key, or --head)"))
        return
    if not result.covered and not report.acknowledged:
        report.gaps.append(Gap(what, "a checkpoint that the attestation key certified; this log has none"))
        return
    if result.covered:
        report.checked.append(
            f"the attestation key's {count(result.certificates, 'certificate')}, up to record {result.covered}"
        )
    # The newest checkpoint may be copied before its certificate. More than that is no accident of copying: without this,
    # records after any certificate could be written again if all later checkpoints were left out.
    bound = max(result.covered, report.acknowledged)
    later = [seq for seq in result.checkpoints if seq > bound]
    start = result.tail_time or result.last_time if bound == result.covered else result.checkpoints[bound][1]
    if len(later) > 1 or _seconds(start, result.last_time) > MAX_TAIL_S:
        what = f"records {bound + 1} to {result.last_seq}, which tell of hours without a certificate of the attestation key"
        report.gaps.append(Gap(what, "a newer head (--head), or a copy of the log with its next certificate"))


def _seconds(start: str, end: str) -> float:
    """Seconds between two times of the log; without end if one cannot be read."""
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")


def count(number: int, what: str) -> str:
    """A number of things, as people say it."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
