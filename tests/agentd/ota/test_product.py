"""An update as a whole: killed after each state and each effect, the machine ends on a version that runs, and the register says
which and why."""

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentd.ota.runner import UpdateRunner
from agentd.ota.sides import Declined
from agentd.ota.table import MAX_FAILED, MAX_STARTS, Step

from .machine import NEW, Killed, UpdatedMachine, unreachable


@dataclass(frozen=True)
class Case:
    """A machine's fate, and how its update ends whether it is killed or not."""

    name: str
    prepare: Callable[[UpdatedMachine], None]
    version: str
    outcome: str
    reason: str = ""


def sick(machine: UpdatedMachine) -> None:
    machine.installer.healthy = False


def unlicensed(machine: UpdatedMachine) -> None:
    real = machine.installer.switch

    async def switch(product: str, sha256: str) -> None:
        machine.licensed = False
        await real(product, sha256)

    machine.installer.switch = switch  # type: ignore[method-assign]


def ill(machine: UpdatedMachine) -> None:
    real = machine.installer.switch

    async def switch(product: str, sha256: str) -> None:
        machine.problem = "the store cannot be opened"
        await real(product, sha256)

    machine.installer.switch = switch  # type: ignore[method-assign]


def ill_before(machine: UpdatedMachine) -> None:
    machine.problem, machine.licensed = "grace has ended", False


def refused(machine: UpdatedMachine) -> None:
    machine.calls.before["prepare"] = [Declined("digest-differs", "the package has another SHA-256", final=True)] * 9


def offline(machine: UpdatedMachine) -> None:
    machine.calls.before["refresh"] = unreachable(5)
    machine.calls.before["stage"] = unreachable(5)


CASES = (
    Case("it works", lambda machine: None, "2.0.0", "installed"),
    Case("the agent was ill before", ill_before, "2.0.0", "installed"),
    Case("the network comes and goes", offline, "2.0.0", "installed"),
    Case("the health command fails", sick, "1.0.0", "rolled-back", "unproved: bin/check: exit status 1"),
    Case("no license is valid any more", unlicensed, "1.0.0", "rolled-back", "unproved: no license of this machine"),
    Case("the agent itself is ill", ill, "1.0.0", "rolled-back", "unproved: the store cannot be opened"),
    Case("the package is refused", refused, "1.0.0", "failed", "digest-differs: the package has another SHA-256"),
)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    # A killed process loses nothing that it has written; these tests cut no power.
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., UpdatedMachine]]:
    made: list[UpdatedMachine] = []

    def one(name: str = "machine") -> UpdatedMachine:
        directory = tmp_path / f"{name}{len(made)}"
        directory.mkdir()
        made.append(UpdatedMachine(directory))
        return made[-1]

    yield one
    for machine in made:
        machine.close()


async def offer_and_settle(machine: UpdatedMachine, runner: UpdateRunner) -> None:
    await runner.hear(NEW, None, paused=False)
    await machine.settle(runner)


def check_end(case: Case, machine: UpdatedMachine) -> None:
    runner, installer = machine.runner, machine.installer
    assert runner.update.step is Step.IDLE
    assert (installer.active[0], installer.in_trial) == (case.version, False)
    entries = machine.register.entries
    assert [entry.outcome for entry in entries] == [case.outcome]
    assert entries[0].reason.startswith(case.reason) and bool(entries[0].reason) == bool(case.reason)
    assert (entries[0].version, entries[0].number, entries[0].before) == ("2.0.0", 7, "1.0.0")
    assert runner.update.done == 7
    events = {record["event"]: record for record in machine.records()}
    line = events[{"installed": "ota.success", "rolled-back": "ota.rollback", "failed": "ota.failed"}[case.outcome]]
    assert (line["outcome"], line["class"], line["reason"]) == (case.outcome, "ota", entries[0].reason)
    report = runner.reports()[-1]
    assert (report.number, report.state) == (
        7,
        {"installed": "committed", "failed": "refused"}.get(case.outcome, "rolled-back"),
    )


def points_of(make: Callable[..., UpdatedMachine], case: Case) -> list[str]:
    """Everything that happens in an update that nobody kills."""
    machine, points = make(), list[str]()
    case.prepare(machine)
    asyncio.run(offer_and_settle(machine, machine.start(points.append)))
    check_end(case, machine)
    return points


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_machine_that_is_killed_anywhere_ends_on_a_version_that_runs(make: Callable[..., UpdatedMachine], case: Case) -> None:
    points = points_of(make, case)
    assert len(points) >= 8
    for number in range(len(points)):
        machine, seen = make(), list[str]()
        case.prepare(machine)

        def kill(point: str, seen: list[str] = seen, number: int = number) -> None:
            seen.append(point)
            if len(seen) == number + 1:
                raise Killed(point)

        with pytest.raises(Killed):
            asyncio.run(offer_and_settle(machine, machine.start(kill)))
        asyncio.run(offer_and_settle(machine, machine.start()))
        check_end(case, machine)


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
@pytest.mark.parametrize("call", ["stage", "prepare", "switch", "prove", "commit", "roll_back"])
def test_an_order_whose_answer_is_lost_has_its_effect_once(make: Callable[..., UpdatedMachine], case: Case, call: str) -> None:
    machine = make()
    case.prepare(machine)
    machine.calls.kill_after = call
    try:
        asyncio.run(offer_and_settle(machine, machine.start()))
    except Killed:
        asyncio.run(offer_and_settle(machine, machine.start()))
    check_end(case, machine)
    assert machine.installer.switched.count(NEW.sha256) == 1


@pytest.mark.parametrize("point", ["effect: staged", "journal: switched", "effect: proving"])
def test_a_lost_journal_ends_the_trial_that_nobody_watches(make: Callable[..., UpdatedMachine], point: str) -> None:
    machine = make()

    def kill(found: str) -> None:
        if found == point:
            raise Killed(point)

    with pytest.raises(Killed):
        asyncio.run(offer_and_settle(machine, machine.start(kill)))
    machine.journal.write_bytes(b"\xff")
    runner = machine.start()
    asyncio.run(machine.settle(runner))
    assert not machine.installer.in_trial
    if point == "effect: proving":  # it was committed
        assert machine.installer.active[0] == "2.0.0"
        return
    assert machine.installer.active[0] == "1.0.0"
    assert machine.register.entries[-1].reason.startswith("journal-lost")


def test_a_trial_that_starts_the_agent_again_and_again_goes_back(make: Callable[..., UpdatedMachine]) -> None:
    machine = make()

    def kill_in_trial(found: str) -> None:
        if found in ("taken up", "journal: switched") and machine.installer.in_trial:
            raise Killed(found)

    for _ in range(1 + MAX_STARTS):
        with pytest.raises(Killed):
            asyncio.run(offer_and_settle(machine, machine.start(kill_in_trial)))
        assert machine.installer.in_trial
    asyncio.run(machine.settle(machine.start()))
    assert (machine.installer.active[0], machine.installer.in_trial) == ("1.0.0", False)
    assert machine.register.entries[-1].reason.startswith("restarts: the agent was started more than 3 times")


def test_the_third_failed_attempt_locks_until_an_administrator_unlocks(make: Callable[..., UpdatedMachine]) -> None:
    machine = make()
    machine.calls.before["prepare"] = [Declined("unpack", "the bundle is damaged") for _ in range(MAX_FAILED + 1)]
    runner = machine.start()

    async def story() -> None:
        await offer_and_settle(machine, runner)
        for _ in range(MAX_FAILED):
            assert runner.update.step is Step.IDLE and runner.update.retry_at
            machine.wall += 3601
            machine.mono += 3601
            await runner.run()
            await machine.settle(runner)
        assert runner.update.step is Step.LOCKED
        assert [report.state for report in runner.reports()] == ["locked"]
        await runner.hear(NEW, None, paused=False)
        assert runner.update.step is Step.LOCKED
        assert await machine.acts.unlock("Eva", "another disk", {"uid": 0}) == MAX_FAILED + 1
        assert runner.update.attempts == 0
        # The directive has ended: until the server knows that, an operator cannot order anything else.
        assert [(report.state, report.detail) for report in runner.reports()] == [("refused", "unpack: the bundle is damaged")]
        await runner.hear(NEW, None, paused=False)
        assert runner.update.step is Step.IDLE

    asyncio.run(story())
    assert [entry.outcome for entry in machine.register.entries] == ["failed"] * (MAX_FAILED + 1)
    assert [entry.attempts for entry in machine.register.entries] == [1, 2, 3]
    names = [record["event"] for record in machine.records()]
    assert "ota.locked" in names and "ota.unlocked" in names


def test_a_network_that_never_comes_locks_nothing(make: Callable[..., UpdatedMachine]) -> None:
    machine = make()
    machine.calls.before["refresh"] = unreachable(10_000)
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        await machine.settle(runner, rounds=2000, step_s=3601)

    asyncio.run(story())
    assert runner.update.attempts == 0
    assert machine.register.entries[-1].reason.startswith("deadline: it was offered for 168 h: the repository")
