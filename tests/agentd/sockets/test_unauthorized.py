"""A user who is not allowed is alerted whatever others do, and cannot make the log or the journal grow."""

import json
import logging
from pathlib import Path

import pytest

from agentd.audit.coalesced import CoalescedEvents
from agentd.audit.file import AuditFile
from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AuditConfig
from agentd.base.counters import Counters
from agentd.sockets.unauthorized import ALERTS_AT_ONCE, ANSWERS_PER_S, UnauthorizedPeers
from audittrail.chain import Chain
from ipc.peer import Peer


class Door:
    def __init__(self, directory: Path) -> None:
        self.mono = 10.0
        self.path = directory / "audit.log"
        file = AuditFile(self.path)
        file.open()
        clock = Clock(lambda: 1.8e9, lambda: self.mono)
        self.audit = AuditLog(
            file, Chain(), CoalescedEvents(directory / "repeats"), clock, AuditConfig(daily_bytes=65_536), lambda: None
        )
        self.counters = Counters()
        self.strangers = UnauthorizedPeers("pos", self.audit, self.counters, lambda: self.mono)

    def knocks(self, uid: int, times: int = 1) -> int:
        return sum(self.strangers.refused(Peer(uid, uid, 77)) for _ in range(times))


def alerts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.CRITICAL]


def test_each_stranger_is_alerted_though_the_budgets_of_the_log_are_used_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(tmp_path)
    for number in range(2000):
        door.audit.record_within_budget(5, number, "license.validated", "malformed", lambda: {"pad": "x" * 100}, important=True)
    door.knocks(3001, 500)
    door.knocks(3002)
    assert len(alerts(caplog)) == ALERTS_AT_ONCE + 1
    assert "uid 3002" in alerts(caplog)[-1]
    assert door.counters.unauthorized == 501
    door.audit.close()
    records = [json.loads(line) for line in door.path.read_bytes().splitlines()]
    denied = [record for record in records if record["event"] == "access.denied"]
    assert [record["actor"]["uid"] for record in denied].count(3002) == 1
    assert sum(record.get("count", 1) for record in denied) == 501
    assert len(denied) == ALERTS_AT_ONCE + 2


def test_a_stranger_who_knocks_again_and_again_gets_no_more_answers(tmp_path: Path) -> None:
    door = Door(tmp_path)
    assert door.knocks(3001, 1000) == ANSWERS_PER_S * 5
    assert door.knocks(3002) == 1
    door.mono += 1
    assert door.knocks(3001, 100) == ANSWERS_PER_S
    door.mono += 3600
    door.strangers.tidy()
    assert door.knocks(3001) == 1
    door.audit.close()
