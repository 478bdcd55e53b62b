"""A provisioning that the log calls begun has its end in the log too, also when the agent is stopped in its middle."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.enrollment.waiting import Unprovisioned
from ipc.messages import Provision
from ipc.peer import Peer
from tests.support.pair import StillClock, config_of, shared_owner

ORDER = Provision(v=1, id=1, url="https://server", root="sha256:" + "0" * 64, claim="x" * 40)


class _Log:
    """Keeps what is recorded."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str, dict[str, Any]]] = []

    def record(self, event: str, outcome: str, **fields: Any) -> None:
        self.records.append((event, outcome, fields))

    async def record_durably(self, event: str, outcome: str, **fields: Any) -> None:
        self.record(event, outcome, **fields)


class _Provisioner:
    """Ends as it is told; without an end it goes on for ever."""

    def __init__(self, end: BaseException | None) -> None:
        self._end = end
        self.begun = asyncio.Event()

    async def provision(self, _order: object) -> None:
        self.begun.set()
        if self._end is not None:
            raise self._end
        await asyncio.Event().wait()


@pytest.mark.parametrize("end", [KeyError("x"), None], ids=["an error of ours", "a stop"])
def test_what_was_begun_has_an_end_in_the_log(tmp_path: Path, end: BaseException | None) -> None:
    log, provisioner = _Log(), _Provisioner(end)

    async def run() -> None:
        waiting = Unprovisioned(
            config_of(tmp_path),
            shared_owner(),
            cast(AuditLog, log),
            cast(Clock, StillClock(None)),
            cast(Any, None),
            cast(Any, None),
            bytes(16),
        )
        waiting._provisioner = cast(Any, provisioner)
        task = asyncio.create_task(waiting._provision(ORDER, Peer(5, 5, 1)))
        await provisioner.begun.wait()
        if end is None:
            task.cancel()
        with pytest.raises((KeyError, asyncio.CancelledError)):
            await task

    asyncio.run(run())
    assert [(event, outcome) for event, outcome, _fields in log.records] == [
        ("agent.provision", "begun"),
        ("agent.provision", "failed"),
    ]
    assert log.records[-1][2]["error"] == ("CancelledError" if end is None else "KeyError")
