"""A log whose older part is archived, and partly removed behind an anchor, is still one log that is checked to the end."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.audit import archiver
from audittrail import anchor, archive
from audittrail.archive import ArchiveDamaged
from audittrail.chain import CHECKPOINT, CLASSES, SEGMENT_CLOSED, Chain, fold_checkpoint, heads_digest, heads_fields
from audittrail.check import verify_log
from audittrail.report import Keys, Report
from audittrail.whole import anchors_path, entries, lines_after, plain_files, read_anchors

KEY = memoryview(bytearray(range(32)))
OTHER_KEY = memoryview(bytearray(32))
OPERATOR = ec.derive_private_key(77, ec.SECP256R1())
IDENTITY = ec.derive_private_key(78, ec.SECP256R1())
DAYS = {"application": 30, "security": 90, "ota": 366}
DAY = 86_400
NOON = 1_800_000_000


def sign(message: bytes) -> bytes:
    r, s = decode_dss_signature(IDENTITY.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def unseal(data: bytes) -> tuple[archive.Header, bytes]:
    return archive.unseal_for_machine(data, KEY)


@dataclass
class Made:
    log: Path
    lines: list[bytes]

    def verify(self) -> Report:
        return verify_log(self.log, Keys(unseal, point_of(IDENTITY)))

    def tampered(self) -> bool:
        return self.verify().outcome == "tampered"

    def retain(self, now: int, budget: int = 1 << 30) -> list[archiver.Removal]:
        stock = archiver.take_stock(self.log, DAYS, budget, now)
        for plan in stock.plans:
            stock.anchors[plan.anchor.kind] = anchor.sign(plan.anchor, sign)
            archiver.write_anchors(self.log, stock.anchors)
            archiver.remove(plan)
        return stock.plans


EVENTS = ("license.validated", "admin.request", "license.validated", "license.validated")


def build(directory: Path, days: int = 6, per_day: int = 12, archived: int = 4, ota_day: int = 1) -> Made:
    """A segment a day; the first `archived` are archives."""
    log, chain, value, lines = directory / "audit.log", Chain(), bytes(32), []
    for day in range(days):
        first, now, heads = chain.seq + 1, NOON + day * DAY, chain.heads
        today = []
        if day:
            today.append(chain.append(now, day, SEGMENT_CLOSED, "ok", {"heads": heads_fields(heads)}))
        for number in range(per_day):
            today.append(chain.append(now + number, number, EVENTS[number % 4], "ok", {"n": number}))
        if day == ota_day:
            today.append(chain.append(now, 1, "ota.started", "ok", {}))
        before, value = value, fold_checkpoint(value, heads_digest(chain.heads))
        fields = {"heads": heads_fields(chain.heads), "before": before.hex(), "value": value.hex()}
        today.append(chain.append(now, 5, CHECKPOINT, "ok", fields))
        path = log if day == days - 1 else directory / f"audit-{first:012d}.log"
        path.write_bytes(b"".join(today))
        lines += today
        if day < archived:
            archiver.archive_segment(path, "audit", now + DAY, KEY, OPERATOR.public_key(), pause=lambda: None)
    return Made(log, lines)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return build(tmp_path_factory.mktemp("template"))


@pytest.fixture
def made(template: Made, tmp_path: Path) -> Made:
    shutil.copytree(template.log.parent, tmp_path, dirs_exist_ok=True)
    return Made(tmp_path / "audit.log", template.lines)


def test_archives_and_files_are_one_log(made: Made) -> None:
    result = made.verify()
    assert result.problem is None
    assert (result.found.records, result.found.first_seq, result.found.last_seq) == (len(made.lines), 1, len(made.lines))
    assert len(archive.archives(made.log)) == 4 * 2 + 1
    assert len(plain_files(made.log)) == 2
    assert list(lines_after(made.log, -1, unseal)) == made.lines


@pytest.mark.parametrize("after", [0, 1, 13, 27, 28, 55, 60, 81, 500])
def test_lines_after_a_number(made: Made, after: int) -> None:
    assert list(lines_after(made.log, after, unseal)) == made.lines[after:]


def test_nothing_of_a_record_can_be_read_in_an_archive(made: Made) -> None:
    for path in archive.archives(made.log):
        assert b"license.validated" not in path.read_bytes()
        assert b"admin.request" not in path.read_bytes()
        with pytest.raises(ArchiveDamaged, match="not made for this key"):
            archive.unseal_for_machine(path.read_bytes(), OTHER_KEY)
        assert path.stat().st_mode & 0o777 == 0o640


def test_the_operator_reads_archives_without_the_machine(made: Made) -> None:
    result = verify_log(made.log, Keys(lambda data: archive.unseal_for_operator(data, OPERATOR)))
    assert result.problem is None
    assert result.found.records == len(made.lines)
    with pytest.raises(ArchiveDamaged, match="not made for this key"):
        archive.unseal_for_operator(archive.archives(made.log)[0].read_bytes(), ec.derive_private_key(5, ec.SECP256R1()))


def test_without_a_key_what_is_not_archived_holds_and_the_rest_is_told(made: Made) -> None:
    result = verify_log(made.log, Keys())
    assert result.outcome == "incomplete"
    assert any("what is in 9 archives (records 1 to 56)" in gap.what and "--archive-key" in gap.needs for gap in result.gaps)
    assert set(result.found.begins) == set(CLASSES)
    assert result.found.first_seq == 4 * 13 + 4 + 1


def test_every_archive_that_is_removed_is_missed(made: Made) -> None:
    for path in archive.archives(made.log):
        data = path.read_bytes()
        path.unlink()
        assert made.tampered(), path
        path.write_bytes(data)
    assert not made.tampered()


def test_an_archive_under_another_name_or_twice_changes_nothing_or_is_found(made: Made) -> None:
    first = archive.archives(made.log)[0]
    first.with_name("audit-000000000002-application.archive").write_bytes(first.read_bytes())
    assert made.tampered()


@given(st.data())
@settings(max_examples=60)
def test_any_flipped_byte_of_an_archive_is_found(template: Made, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(archive.archives(template.log)))
    whole = path.read_bytes()
    place, flip = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(whole)
    changed[place] ^= flip
    try:
        path.write_bytes(changed)
        assert template.tampered()
        path.write_bytes(whole[:place])
        assert template.tampered()
    finally:
        path.write_bytes(whole)


@given(st.binary(max_size=300))
def test_what_is_no_archive_is_told(data: bytes) -> None:
    for junk in (data, archive.MAGIC + data, archive.MAGIC + len(data).to_bytes(4, "big") + data):
        with pytest.raises(ArchiveDamaged):
            archive.read_header(junk)


@given(st.binary(max_size=300))
def test_a_stream_of_no_lines_is_told(data: bytes) -> None:
    with pytest.raises(ArchiveDamaged):
        list(archive.lines(data))


# Retention


def test_each_class_goes_when_its_time_is_over(made: Made) -> None:
    assert made.retain(NOON + 30 * DAY) == []
    plans = made.retain(NOON + 33 * DAY)
    assert [(plan.anchor.kind, len(plan.paths), plan.anchor.reason) for plan in plans] == [("application", 3, "retention")]
    assert made.verify().problem is None
    kinds = [json.loads(line)["class"] for line in lines_after(made.log, -1, unseal)]
    assert kinds.count("security") == sum(json.loads(line)["class"] == "security" for line in made.lines)
    made.retain(NOON + 92 * DAY)
    assert made.verify().problem is None
    assert {entry.header.kind for entry in entries(made.log, read_anchors(made.log))} == {"security", "ota"}
    made.retain(NOON + 400 * DAY)
    assert made.verify().problem is None
    assert archive.archives(made.log) == []
    anchors = read_anchors(made.log)
    assert {kind: removed.records for kind, removed in anchors.items()} == {"application": 36, "security": 12 + 4 + 3, "ota": 1}


def test_what_is_removed_without_an_anchor_is_missed(made: Made) -> None:
    for path in archive.archives(made.log):
        path.unlink()
    problem = made.verify().problem
    assert problem is not None
    assert "no anchor" in problem.text


def test_more_than_the_anchor_says_is_missed(made: Made) -> None:
    made.retain(NOON + 32 * DAY)
    next(path for path in archive.archives(made.log) if "application" in path.name).unlink()
    problem = made.verify().problem
    assert problem is not None
    assert "where retention stopped" in problem.text


def edit(change: Callable[[anchor.Removed], anchor.Removed], log: Path) -> None:
    anchors = {kind: change(removed) for kind, removed in read_anchors(log).items()}
    archiver.write_anchors(log, anchors)


@pytest.mark.parametrize(
    "change",
    [
        lambda removed: msgspec.structs.replace(removed, reason="space"),
        lambda removed: msgspec.structs.replace(removed, records=removed.records + 1),
        lambda removed: msgspec.structs.replace(removed, signature=b""),
        lambda removed: msgspec.structs.replace(removed, signature=bytes(64)),
        lambda removed: msgspec.structs.replace(removed, signature=removed.signature[::-1]),
    ],
    ids=["reason", "records", "none", "zeros", "reversed"],
)
def test_an_anchor_that_was_not_signed_by_the_machine_is_found(
    made: Made, change: Callable[[anchor.Removed], anchor.Removed]
) -> None:
    made.retain(NOON + 32 * DAY)
    edit(change, made.log)
    problem = made.verify().problem
    assert problem is not None
    assert "not signed by this machine" in problem.text


def test_an_anchor_that_is_moved_to_hide_more_is_found(made: Made) -> None:
    made.retain(NOON + 32 * DAY)
    later = next(entry for entry in entries(made.log, read_anchors(made.log)) if entry.header.kind == "application")
    later.path.unlink()
    edit(lambda removed: msgspec.structs.replace(removed, last_seq=later.header.last_seq, head=later.header.head), made.log)
    assert made.tampered()


@pytest.mark.parametrize("junk", [b"", b"[]x", b'{"a":1}', b"[1]", b'[{"kind":"x"}]', b"\xff", b"[" * 5000])
def test_a_file_of_anchors_that_cannot_be_read_is_a_problem(made: Made, junk: bytes) -> None:
    anchors_path(made.log).write_bytes(junk)
    assert made.tampered()


def test_when_space_is_short_only_application_records_go_early(made: Made) -> None:
    plans = made.retain(NOON + DAY, budget=1)
    assert [(plan.anchor.kind, len(plan.paths), plan.anchor.reason) for plan in plans] == [("application", 4, "space")]
    assert made.verify().problem is None
    assert made.retain(NOON + DAY, budget=1) == []


# Cuts


class Cut(Exception):
    pass


def test_power_cut_between_archives_and_the_end_of_their_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(tmp_path, archived=2)
    closed = plain_files(made.log)
    whole = closed[0].read_bytes()
    archiver.archive_segment(closed[0], "audit", NOON, KEY, None, pause=lambda: None)
    closed[0].write_bytes(whole)
    assert made.verify().found.records == len(made.lines)
    archiver.archive_segment(closed[0], "audit", NOON, KEY, None, pause=lambda: None)
    assert made.verify().found.records == len(made.lines)
    assert not closed[0].exists()


def test_power_cut_between_an_anchor_and_the_end_of_its_archives(made: Made) -> None:
    stock = archiver.take_stock(made.log, DAYS, 1 << 30, NOON + 33 * DAY)
    (plan,) = stock.plans
    stock.anchors[plan.anchor.kind] = anchor.sign(plan.anchor, sign)
    archiver.write_anchors(made.log, stock.anchors)
    plan.paths[0].unlink()
    assert not made.tampered()
    again = archiver.take_stock(made.log, DAYS, 1 << 30, NOON + 33 * DAY)
    assert again.plans == []
    assert not any(path.exists() for path in plan.paths)
    assert not made.tampered()


def test_a_segment_with_a_line_that_is_no_record_stays(tmp_path: Path) -> None:
    made = build(tmp_path, archived=0)
    segment = plain_files(made.log)[0]
    segment.write_bytes(segment.read_bytes() + b"junk\n")
    with pytest.raises(archiver.SegmentDamaged, match="not records"):
        archiver.archive_segment(segment, "audit", NOON, KEY, None, pause=lambda: None)
    assert segment.exists()
    assert archive.archives(made.log) == []


def test_the_newest_closed_segment_and_what_no_checkpoint_covers_stay_plain(tmp_path: Path) -> None:
    made = build(tmp_path, archived=0)
    files = plain_files(made.log)
    assert archiver.archivable(made.log, 10_000) == files[:-2]
    assert archiver.archivable(made.log, 20) == files[:1]
    assert archiver.archivable(made.log, 0) == []
    assert archiver.archivable(tmp_path / "none" / "audit.log", 5) == []


def test_the_pieces_of_a_large_segment_come_out_whole(tmp_path: Path) -> None:
    chain, paused = Chain(), []
    lines = [chain.append(NOON, 1, "license.validated", "ok", {"text": "x" * 900, "n": n}) for n in range(2000)]
    segment = tmp_path / "audit-000000000001.log"
    segment.write_bytes(b"".join(lines))
    (path,) = archiver.archive_segment(segment, "audit", NOON, KEY, None, pause=lambda: paused.append(1))
    header, compressed = unseal(path.read_bytes())
    assert (header.records, header.first_seq, header.last_seq) == (2000, 1, 2000)
    assert list(archive.lines(compressed)) == lines
    assert len(paused) > 10
    assert header.operator is None
    with pytest.raises(ArchiveDamaged, match="archive_key"):
        archive.unseal_for_operator(path.read_bytes(), OPERATOR)


def test_streams_are_cut_at_any_place(tmp_path: Path) -> None:
    made = build(tmp_path)
    for path in archive.archives(made.log):
        _, compressed = unseal(path.read_bytes())

        def read(data: bytes) -> Iterator[bytes]:
            return archive.lines(data)

        for size in range(0, len(compressed), 7):
            with pytest.raises(ArchiveDamaged):
                list(read(compressed[:size]))
