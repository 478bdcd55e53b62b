"""What must be logged is logged, what is too much is counted; a full disk leaves a gap record and a chain that holds."""

import asyncio
import contextlib
import json
import logging
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.audit.coalesced import SLOTS, CoalescedEvents
from agentd.audit.file import AuditDamaged, AuditFile, tail_lines
from agentd.audit.log import AuditLog, AuditUnavailable
from agentd.base.alerts import ALERTS
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AuditConfig
from audittrail.chain import Chain, fold_checkpoint
from audittrail.verify import segments, verify_files, verify_lines


class FakeFile:
    """Takes lines while there is room."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.full = False
        self.synced = 0
        self.broken_rotation = False
        self.path = Path("audit.log")

    @property
    def size(self) -> int:
        return sum(map(len, self.lines))

    def write(self, data: bytes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.lines += data.splitlines(keepends=True)

    def sync(self) -> None:
        self.synced = len(self.lines)

    def rotate(self, next_seq: int) -> Path:
        if self.broken_rotation:
            raise OSError(28, "No space left on device")
        return Path(f"audit-{next_seq}.log")

    def close(self) -> None:
        pass


class Bench:
    def __init__(self, directory: Path, limits: AuditConfig | None = None, file: Any = None) -> None:
        self.wall, self.mono, self.scheduled = 1.8e9, 100.0, 0
        self.file: Any = file or FakeFile()
        self.repeats = CoalescedEvents(directory / "repeats")
        clock = Clock(lambda: self.wall, lambda: self.mono)
        self.log = AuditLog(self.file, Chain(), self.repeats, clock, limits or AuditConfig(), self._schedule)

    def _schedule(self) -> None:
        self.scheduled += 1

    def seen(self, uid: int = 1, key: Any = "k", *, important: bool = False) -> None:
        self.log.record_within_budget(uid, key, "license.validated", "ok", lambda: {"key": str(key)}, important=important)

    def events(self) -> list[dict[str, Any]]:
        assert verify_lines(self.file.lines).ok
        return [json.loads(line) for line in self.file.lines]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, AuditConfig(records_per_s=1, burst=3))
    yield made
    made.repeats.close()


def test_a_tick_is_one_write_in_order(bench: Bench) -> None:
    for number in range(5):
        bench.log.record("a.b", n=number)
    assert (bench.scheduled, bench.log.pending, bench.file.lines) == (1, True, [])
    bench.log.flush()
    assert [event["n"] for event in bench.events()] == list(range(5))
    assert (bench.log.pending, bench.log.records, bench.log.seq) == (False, 5, 5)


def test_beyond_the_budget_repeats_are_counted(bench: Bench) -> None:
    for number in range(10):
        bench.wall += 1
        bench.seen(key="a" if number % 2 else "b")
    bench.seen(uid=2, key="c")
    assert bench.log.counted == 7
    bench.log.emit_counts()
    bench.log.flush()
    events = bench.events()
    assert len(events) == 3 + 1 + 2
    counts = {event["key"]: event for event in events if "count" in event}
    assert {key: event["count"] for key, event in counts.items()} == {"a": 4, "b": 3}
    assert counts["a"]["first"] == "2027-01-15T08:00:04.000000Z"
    assert counts["a"]["last"] == "2027-01-15T08:00:10.000000Z"


def test_the_budget_comes_back(bench: Bench) -> None:
    for _time in range(5):
        bench.seen()
    bench.mono += 2
    for _time in range(3):
        bench.seen()
    assert bench.log.counted == 3
    bench.log.tidy()


def test_what_is_important_is_never_only_counted(bench: Bench) -> None:
    for _time in range(50):
        bench.seen(important=True)
    bench.log.flush()
    assert (len(bench.events()), bench.log.counted) == (50, 0)


def test_the_days_budget_holds_for_everybody_until_the_next_day(tmp_path: Path) -> None:
    bench = Bench(tmp_path, AuditConfig(daily_bytes=1000))
    for _time in range(20):
        bench.seen(important=True)
        bench.log.flush()
    assert sum(event["event"] == "alert.audit_budget" for event in bench.events()) == 1
    assert bench.file.size < 2000
    assert bench.log.counted > 10
    bench.wall += 86_400
    before = bench.log.counted
    bench.seen(important=True)
    assert bench.log.counted == before
    bench.repeats.close()


def test_a_full_table_is_emitted_and_goes_on(bench: Bench) -> None:
    for number in range(600):
        bench.seen(key=number)
    bench.log.emit_counts()
    bench.log.flush()
    events = bench.events()
    assert sum(event.get("count", 1) for event in events) == 600


def test_a_full_disk_leaves_a_gap_record_and_a_whole_chain(bench: Bench) -> None:
    bench.log.record("a.one")
    bench.log.flush()
    bench.file.full = True
    for _time in range(3):
        bench.log.record("a.lost")
    bench.log.flush()
    assert bench.log.failing
    bench.log.record("a.lost")
    bench.log.flush()
    bench.file.full = False
    bench.log.flush()
    bench.log.record("a.two")
    bench.log.flush()
    events = bench.events()
    assert [event["event"] for event in events] == ["a.one", "audit.gap", "a.two"]
    assert events[1]["lost_records"] == 4
    assert not bench.log.failing


def test_what_must_not_happen_unlogged_is_refused_while_the_disk_is_full(bench: Bench) -> None:
    bench.file.full = True
    with pytest.raises(AuditUnavailable):
        asyncio.run(bench.log.record_durably("secret.install", "begun"))
    bench.file.full = False
    asyncio.run(bench.log.record_durably("secret.install", "begun"))
    assert [event["event"] for event in bench.events()] == ["audit.gap", "secret.install"]
    assert bench.file.synced == 2


def test_durable_records_are_synced(bench: Bench) -> None:
    asyncio.run(bench.log.record_durably("a.b"))
    assert bench.file.synced == 1


def test_a_segment_that_cannot_be_closed_stops_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, AuditConfig(segment_bytes=1))
    bench.file.broken_rotation = True
    bench.log.record("a.b")
    bench.log.flush()
    bench.log.record("a.c")
    bench.log.flush()
    assert [event["event"] for event in bench.events()] == ["a.b", "a.c"]
    bench.repeats.close()


def test_checkpoints_fold_into_each_other(bench: Bench) -> None:
    value = bytes(32)
    for number in range(3):
        bench.log.record("a.b", n=number)
        digest, expected = asyncio.run(bench.log.checkpoint(value))
        assert expected == fold_checkpoint(value, digest)
        value = expected
    result = verify_lines(bench.file.lines)
    assert result.ok
    assert result.values[-1] == value
    assert result.last_checkpoint == result.last_seq == 6


def test_counts_of_a_killed_run_are_logged_by_the_next(tmp_path: Path) -> None:
    limits = AuditConfig(records_per_s=1, burst=1)
    bench = Bench(tmp_path, limits)
    for _time in range(4):
        bench.seen()
    other = Bench(tmp_path, limits)
    other.log.recover_counts()
    other.log.flush()
    assert [event["count"] for event in other.events()] == [3]
    for each in (bench, other):
        each.repeats.close()


def test_limits_can_change_while_running(bench: Bench) -> None:
    bench.log.reconfigure(AuditConfig(records_per_s=1, burst=100))
    for _time in range(50):
        bench.seen(uid=9)
    assert bench.log.counted == 0


# The files


def real(directory: Path, segment_bytes: int = 65_536) -> tuple[Bench, AuditFile]:
    file = AuditFile(directory / "audit.log")
    file.open()
    return Bench(directory, AuditConfig(segment_bytes=segment_bytes), file), file


def test_rotation_makes_segments_that_verify_as_one_chain(tmp_path: Path) -> None:
    bench, _file = real(tmp_path, 700)
    for number in range(20):
        bench.log.record("a.b", n=number)
        bench.log.flush()
    bench.log.close()
    log = tmp_path / "audit.log"
    assert len(segments(log)) > 3
    result = verify_files(segments(log))
    assert result.ok
    assert result.last_seq == bench.log.seq
    assert {path.stat().st_mode & 0o777 for path in segments(log)} == {0o640}
    end = AuditFile(log)
    found = end.open()
    assert (found.seq, found.heads, found.torn) == (bench.log.seq, bench.log.heads, 0)
    end.close()
    lines = tail_lines(log, 5, 8, 100_000)
    assert [json.loads(line)["seq"] for line in lines] == list(range(found.seq - 7, found.seq + 1))
    assert tail_lines(log, found.seq, 8, 100_000) == []
    assert len(tail_lines(log, -1, 1000, 100_000)) == found.seq


def test_a_torn_last_line_is_set_aside(tmp_path: Path) -> None:
    bench, _file = real(tmp_path)
    for number in range(3):
        bench.log.record("a.b", n=number)
    bench.log.close()
    log = tmp_path / "audit.log"
    data = log.read_bytes()
    log.write_bytes(data[:-10])
    again = AuditFile(log)
    end = again.open()
    third = data.splitlines(keepends=True)[2]
    assert (end.seq, end.torn) == (2, len(third) - 10)
    assert (tmp_path / "audit.log.torn").read_bytes() == third[:-10] + b"\n"
    assert log.read_bytes() == b"".join(data.splitlines(keepends=True)[:2])
    again.close()


def test_a_damaged_log_is_not_gone_on_with(tmp_path: Path) -> None:
    bench, _file = real(tmp_path)
    bench.log.record("a.b", n=1)
    bench.log.close()
    log = tmp_path / "audit.log"
    log.write_bytes(log.read_bytes().replace(b'"n":1', b'"n":2'))
    with pytest.raises(AuditDamaged, match="line 1"):
        AuditFile(log).open()


def test_a_link_in_the_logs_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.log").symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        AuditFile(tmp_path / "audit.log").open()
    assert not (tmp_path / "target").exists()


def test_after_a_rotation_that_failed_the_file_still_takes_records(tmp_path: Path) -> None:
    bench, file = real(tmp_path)
    bench.log.record("a.b")
    bench.log.flush()
    (tmp_path / "audit-000000000001.log").mkdir()
    with contextlib.suppress(OSError):
        file.rotate(2)
    bench.log.record("a.c")
    bench.log.flush()
    assert not bench.log.failing
    assert verify_lines((tmp_path / "audit.log").read_bytes().splitlines(keepends=True)).last_seq == 2
    bench.log.close()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def test_what_others_do_to_the_open_file_is_alerted_and_the_log_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench, _file = real(tmp_path)
    log = tmp_path / "audit.log"

    def go_on() -> list[str]:
        bench.log.record("a.b")
        bench.log.look_after_file()
        bench.log.flush()
        return [json.loads(line)["event"] for line in log.read_bytes().splitlines()]

    assert go_on() == ["a.b"]
    log.write_bytes(b"")
    assert go_on() == ["a.b", "alert.audit_file"]
    log.unlink()
    assert go_on() == ["alert.audit_file"]
    log.rename(tmp_path / "aside")
    log.write_bytes(b"")
    assert go_on() == ["alert.audit_file"]
    assert go_on() == ["alert.audit_file", "a.b"]
    with log.open("ab") as other:
        other.write(b"{}\n")
    bench.log.look_after_file()
    bench.log.flush()
    alerts = [record.message for record in caplog.records if record.levelno == logging.CRITICAL]
    parts = ("was cut short by", "was removed or replaced", "was removed or replaced", "3 bytes were added to")
    assert len(alerts) == len(parts)
    assert all(part in text for part, text in zip(parts, alerts, strict=True))
    bench.log.look_after_file()
    assert len([record for record in caplog.records if record.levelno == logging.CRITICAL]) == 4
    bench.log.close()


def test_a_record_of_an_alert_says_how_severe_it_is(tmp_path: Path) -> None:
    bench, _file = real(tmp_path)
    for alert in ALERTS:
        bench.log.raise_alert(alert, "it is so", text="it is so")
        bench.log.clear_alert(alert, "it is over")
    bench.log.flush()
    records = [json.loads(line) for line in (tmp_path / "audit.log").read_bytes().splitlines()]
    said = [(record["event"], record["outcome"], record["severity"]) for record in records]
    assert said == [(a.event, outcome, a.severity.value) for a in ALERTS for outcome in ("raised", "cleared")]
    bench.log.close()


def test_more_kinds_than_the_table_holds_cost_one_record_each_minute(tmp_path: Path) -> None:
    """One user with ever new requests does not get past the day's budget (threat-model T16)."""
    bench = Bench(tmp_path, AuditConfig(daily_bytes=65_536, records_per_s=1, burst=1))
    for number in range(5000):
        bench.wall += 0.01
        bench.seen(key=("new", number), important=True)
        if number % 100 == 99:
            bench.log.flush()
    bench.log.emit_counts()
    bench.log.flush()
    assert bench.file.size < 65_536 + SLOTS * 400
    events = bench.events()
    others = [event for event in events if event.get("others")]
    assert len(others) == 1
    counted = sum(int(event.get("count", 1)) for event in events if event["event"] == "license.validated")
    assert counted == 5000
    bench.repeats.close()


def test_a_log_that_cannot_be_opened_again_goes_on_where_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No number of a closed file is ever written to: it may be somebody's connection by then."""
    bench, _file = real(tmp_path)
    log = tmp_path / "audit.log"
    bench.log.record("a.b")
    bench.log.flush()
    log.rename(tmp_path / "kept")
    log.symlink_to("/nonexistent/x")
    with contextlib.ExitStack() as others:
        for number in range(4):
            bench.log.look_after_file()
            other = others.enter_context((tmp_path / f"other{number}").open("w+b"))
            bench.log.record("a.b", n=number)
            bench.log.flush()
            other.seek(0)
            assert other.read() == b""
    assert "cannot be created again" in caplog.text
    lines = (tmp_path / "kept").read_bytes().splitlines(keepends=True)
    assert verify_lines(lines).ok
    assert [json.loads(line)["event"] for line in lines].count("a.b") == 5
    log.unlink()
    bench.log.look_after_file()
    bench.log.record("a.b")
    bench.log.flush()
    assert log.read_bytes().count(b"\n") == 2
    bench.log.close()


def test_a_pipe_in_the_place_of_the_log_is_not_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    os.mkfifo(log)
    with pytest.raises(OSError, match="not a regular file"):
        AuditFile(log).open()
    log.unlink()
    os.mkfifo(tmp_path / "audit-000000000001.log")
    with pytest.raises(OSError, match="not a regular file"):
        AuditFile(log).open()


def test_a_hole_of_half_a_gigabyte_takes_no_memory(tmp_path: Path) -> None:
    bench, _file = real(tmp_path)
    for number in range(50):
        bench.log.record("a.b", n=number)
    bench.log.close()
    log = tmp_path / "audit.log"
    os.truncate(log, 500_000_000)
    tracemalloc.start()
    try:
        assert not verify_files([log]).ok
        tail_lines(log, -1, 100, 60_000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
