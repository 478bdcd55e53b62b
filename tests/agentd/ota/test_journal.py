"""The journal of updates is read by the version before the one that wrote it, so it may say more than that version knows."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.ota.journal import Journal, Report, read_journal
from agentd.ota.runner import UpdateRunner
from agentd.ota.table import Failure, Step, Update

from .machine import NEW, Killed, UpdatedMachine

WHOLE = Journal(
    update=Update(
        step=Step.PROVING, order=NEW, since=9, starts=1, before="1.0.0", done=6, licensed=True,
        failure=Failure(code="unproved", text="it did not work"), attempts=1,
    ),
    known=7,
    paused="uid 1000",
    bench_since=5,
    reports=(Report(number=6, state="committed", detail="", at=8),),
)  # fmt: skip


def read(tmp_path: Path, content: object) -> Journal:
    path = tmp_path / "ota.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_journal(path)


def members() -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(WHOLE)
    return found


PLACES = [(), ("update",), ("update", "order"), ("update", "failure"), ("reports", 0)]


@pytest.mark.parametrize("where", PLACES, ids=lambda where: ".".join(map(str, where)))
def test_a_member_of_a_later_version_costs_nothing(tmp_path: Path, where: tuple[Any, ...]) -> None:
    content = members()
    place: Any = content
    for name in where:
        place = place[name]
    place["of a later version"] = {"a": [1, None]}
    assert read(tmp_path, content) == WHOLE


def test_a_step_of_a_later_version_costs_the_step_only(tmp_path: Path) -> None:
    content = members()
    content["update"] |= {"step": "soaking", "reached": "soaking"}
    expected = msgspec.structs.replace(WHOLE.update, step=Step.IDLE, reached=Step.IDLE, retry_at=1)
    assert read(tmp_path, content) == msgspec.structs.replace(WHOLE, update=expected)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"5", {"update": 5}, {"update": {"step": 5, "since": "x"}}, {"known": "7"}]
)
def test_what_is_no_journal_is_an_empty_one(tmp_path: Path, content: object) -> None:
    assert read(tmp_path, content) == Journal()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[UpdatedMachine]:
    made = UpdatedMachine(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("point", ["journal: window", "journal: switched"])
def test_an_update_at_an_unknown_step_begins_again_and_its_trial_is_taken_back(machine: UpdatedMachine, point: str) -> None:
    def kill(found: str) -> None:
        if found == point:
            raise Killed(point)

    async def offer_and_settle(runner: UpdateRunner) -> None:
        await runner.hear(NEW, None, paused=False)
        await machine.settle(runner)

    with pytest.raises(Killed):
        asyncio.run(offer_and_settle(machine.start(kill)))
    content = json.loads(machine.journal.read_bytes())
    content["update"] |= {"step": "soaking"}
    machine.journal.write_text(json.dumps(content))
    runner = machine.start()
    assert runner.known == NEW.number
    asyncio.run(machine.settle(runner))
    version = machine.installer.active[0]
    if point == "journal: window":
        assert version == "2.0.0" and machine.register.entries[-1].outcome == "installed"
    else:
        assert version == "1.0.0" and machine.register.entries[-1].reason.startswith("journal-lost")
    assert not machine.installer.in_trial and runner.update.attempts == 0 and runner.known == NEW.number
