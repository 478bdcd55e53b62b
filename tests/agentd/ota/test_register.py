"""The maintenance register: what an entry says, that it is in the log before the file, and that it is there once."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.audit.coalesced import CoalescedEvents
from agentd.audit.file import AuditFile
from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AuditConfig
from agentd.ota.register import (
    FAILED,
    INSTALLED,
    KEEP_DAYS,
    MAX_ENTRIES,
    QUARTER_DAYS,
    REHEARSAL,
    REHEARSED,
    ROLLED_BACK,
    WITHDRAWN,
    Entry,
    Register,
    entry_of,
)
from agentd.ota.table import NOTHING_TO_DO, Failure, Order, Step, Update
from audittrail.chain import Chain, retention_class

ORDER = Order(number=7, product="pos", version="2.0.0", build_id="b2", sha256="ab" * 32, operator="Eva")
BAD = Failure(code="unproved", text="the health command failed")
PURPOSE = Failure(code=REHEARSAL, text="on purpose", counted=False)
DAY = 86_400
NOW = 1_800_000_000


class Log:
    def __init__(self, tmp_path: Path) -> None:
        self.file = AuditFile(tmp_path / "audit.log")
        self.file.open()
        clock = Clock(wall=lambda: float(NOW), monotonic=lambda: 5.0)
        self.audit = AuditLog(
            self.file, Chain(), CoalescedEvents(tmp_path / "audit.repeats"), clock, AuditConfig(), lambda: None
        )
        self.path = tmp_path / "audit.log"

    def records(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.path.read_bytes().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def update(step: Step, reached: Step = Step.IDLE, failure: Failure | None = None) -> Update:
    return Update(step=step, order=ORDER, since=NOW - 90, reached=reached, failure=failure, before="1.0.0", attempts=1)


@pytest.mark.parametrize(
    ("step", "reached", "failure", "outcome", "reason", "attempts"),
    [
        (Step.COMMITTED, Step.IDLE, None, INSTALLED, "", 1),
        (Step.COMMITTED, Step.IDLE, NOTHING_TO_DO, INSTALLED, "present: this build ran already, nothing was installed", 1),
        (Step.ROLLED_BACK, Step.PROVING, BAD, ROLLED_BACK, "unproved: the health command failed", 2),
        (Step.ROLLED_BACK, Step.SWITCHED, BAD, ROLLED_BACK, "unproved: the health command failed", 2),
        (Step.ROLLED_BACK, Step.DOWNLOADED, BAD, FAILED, "unproved: the health command failed", 2),
        (Step.ROLLED_BACK, Step.PROVING, PURPOSE, REHEARSED, "rehearsal: on purpose", 1),
        (Step.WINDOW, Step.IDLE, None, WITHDRAWN, "", 1),
    ],
)  # fmt: skip
def test_an_entry_says_what_became_of_it(
    step: Step, reached: Step, failure: Failure | None, outcome: str, reason: str, attempts: int
) -> None:
    entry = entry_of(update(step, reached, failure), NOW)
    assert entry is not None
    assert (entry.outcome, entry.reason, entry.attempts) == (outcome, reason, attempts)
    assert (entry.duration_s, entry.operator, entry.before, entry.number) == (90, "Eva", "1.0.0", 7)


def test_what_names_nothing_has_no_entry() -> None:
    assert entry_of(Update(), NOW) is None


def test_an_entry_is_in_the_log_of_twelve_months_and_then_in_the_file(log: Log, tmp_path: Path) -> None:
    register = Register(tmp_path / "ota-register.json", log.audit)
    entries = [entry_of(update(Step.COMMITTED), NOW), entry_of(update(Step.ROLLED_BACK, Step.PROVING, BAD), NOW)]
    for entry in entries:
        assert entry is not None
        asyncio.run(register.write(entry))
        asyncio.run(register.write(entry))  # as after a kill
    assert [(each["event"], each["class"], each["outcome"]) for each in log.records()] == [
        ("ota.success", "ota", INSTALLED),
        ("ota.rollback", "ota", ROLLED_BACK),
    ]
    assert log.records()[1]["reason"] == "unproved: the health command failed"
    assert Register(tmp_path / "ota-register.json", log.audit).entries == tuple(entries)
    assert retention_class("ota.failed", FAILED) == "ota"


def entry(time: int, outcome: str = INSTALLED, number: int = 1) -> Entry:
    return Entry(
        time=time, began=time - 5, duration_s=5, product="pos", version="2", build_id="b", before="1", number=number,
        operator="server", outcome=outcome, reason="", attempts=0,
    )  # fmt: skip


def test_the_file_keeps_a_year_and_has_a_limit(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "ota-register.json"
    path.write_bytes(
        msgspec.json.encode([entry(NOW - KEEP_DAYS * DAY - 1), *(entry(NOW - 1, number=n) for n in range(MAX_ENTRIES))])
    )
    register = Register(path, log.audit)
    asyncio.run(register.write(entry(NOW, number=9999)))
    assert len(register.entries) == MAX_ENTRIES
    assert register.entries[0].number == 1 and register.entries[-1].number == 9999


def test_a_file_that_is_damaged_loses_no_update(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "ota-register.json"
    path.write_bytes(b"{")
    register = Register(path, log.audit)
    assert register.entries == ()
    asyncio.run(register.write(entry(NOW)))
    assert len(Register(path, log.audit).entries) == 1


def test_a_test_bench_rehearses_each_quarter(log: Log, tmp_path: Path) -> None:
    register = Register(tmp_path / "ota-register.json", log.audit)
    quarter = QUARTER_DAYS * DAY
    assert not register.rehearsal_overdue(NOW, NOW - quarter)
    assert register.rehearsal_overdue(NOW, NOW - quarter - 1)
    asyncio.run(register.write(entry(NOW, REHEARSED)))
    assert not register.rehearsal_overdue(NOW + quarter, 0)
    assert register.rehearsal_overdue(NOW + quarter + 1, 0)
    assert register.last(REHEARSED, "other") is None
