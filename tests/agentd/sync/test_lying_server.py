"""A license server that lies about updates: what the machine does, and what its register, status, metrics and reports say then.

The server has the keys that sign directives, and says what is not so. It can order, take back and keep silent; it cannot make
the agent record, show or report anything but what the installer says of the machine.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from agentd.ota.register import INSTALLED, ROLLED_BACK, WITHDRAWN
from agentd.ota.runner import UpdateRunner
from agentd.ota.sides import Declined, Hindered
from agentd.ota.table import IN_TRIAL, Step
from agentd.telemetry.updateview import update_view
from contracts.contact.updates import OutcomeState
from tests.agentd.ota.machine import AT_ONCE, NEW, NOW, UpdatedMachine
from tests.agentd.sync.test_ota import Contact, directive

NEWER = msgspec.structs.replace(NEW, number=8)
BAD_DIRECTIVE = {"window": None, "notice_until": 0}
Lie = Callable[[UpdateRunner], Awaitable[None]]
LIES: dict[str, Lie] = {
    "it is proved, nothing is ordered any more": lambda runner: runner.hear(None, None, paused=False),
    "it is withdrawn": lambda runner: runner.hear(None, 7, paused=False),
    "it is superseded": lambda runner: runner.hear(NEWER, None, paused=False),
    "it is known how it ended": lambda runner: runner.acknowledged((7, 8), runner.ended[:0]),
    "it is ordered again, as if nothing had begun": lambda runner: runner.hear(NEW, None, paused=False),
    "it is an older one that counts": lambda runner: runner.hear(
        msgspec.structs.replace(NEW, number=3, version="0.9.0", build_id="b0"), None, paused=False
    ),
}
BEFORE = (Step.OFFERED, Step.WINDOW, Step.BACKED_UP, Step.DOWNLOADED, Step.STAGED)
MOMENTS = [
    *(pytest.param(at, True, id=f"{at}, a good version") for at in (*BEFORE, *IN_TRIAL, Step.COMMITTED)),
    *(pytest.param(at, False, id=f"{at}, a bad version") for at in (*IN_TRIAL, Step.ROLLED_BACK)),
]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[UpdatedMachine]:
    made = UpdatedMachine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def contact(tmp_path: Path) -> Iterator[Contact]:
    made = Contact(tmp_path)
    yield made
    made.machine.close()


async def end(machine: UpdatedMachine, lie: Lie, at: Step) -> bool:
    """Updates the machine until it rests, and has the server lie once, at a step; returns whether that step came."""
    runner, told = machine.runner, False
    for _ in range(20):
        if runner.update.step is at and not told:
            told = True
            await lie(runner)
        if runner.update.step is Step.IDLE and not runner.update.retry_at:
            return told
        if not await runner._turn():
            machine.wall += 10
            machine.mono += 10
    raise AssertionError(f"it does not end: {runner.update.step} {runner.problem}")


def agrees(machine: UpdatedMachine) -> str:
    """Asserts that everything the agent says is what the installer has; returns how the last update ended."""
    runner, installer = machine.runner, machine.installer
    last = machine.register.entries[-1]
    view = update_view(runner, machine.clock)
    assert [(each["version"], each["in_trial"]) for each in view["running"]] == [(installer.active[0], False)]
    runs = installer.active == (last.version, last.build_id)
    assert (last.outcome == INSTALLED) is runs, last
    assert runner.last_installed() == (last.time if runs and not last.reason else 0)
    logged = [each for each in machine.records() if each["event"] in ("ota.success", "ota.rollback", "ota.failed")]
    assert [each["outcome"] for each in logged] == [each.outcome for each in machine.register.entries]
    report = runner.ended[-1]
    assert (report.state == "committed") is runs, report
    assert (report.state == "rolled-back") is (last.outcome == ROLLED_BACK), report
    return last.outcome


@pytest.mark.parametrize(("at", "works"), MOMENTS)
@pytest.mark.parametrize("lie", LIES)
def test_whatever_the_server_says_on_the_way_the_agent_says_what_runs(
    machine: UpdatedMachine, lie: str, at: Step, works: bool
) -> None:
    """What has switched ends by its own proof alone; what has not is installed, or was taken back."""
    machine.settings = replace(AT_ONCE, trial_s=15)
    machine.installer.healthy = works
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        assert await end(machine, LIES[lie], at), "the step has to come"
        await runner.installed()
        outcome = agrees(machine)
        proof = INSTALLED if works else ROLLED_BACK
        assert outcome in (proof, WITHDRAWN) if at in BEFORE else outcome == proof

    asyncio.run(story())


def test_an_end_that_the_server_says_it_knows_before_it_was_told_is_reported_all_the_same(contact: Contact) -> None:
    """It acknowledges the progress that it was told of while the update ends, or an end that nobody has reported."""
    runner, client, machine = contact.runner, contact.client, contact.machine
    runner.reconfigure(AT_ONCE)
    machine.installer.healthy = False
    client.directive, client.acknowledged = directive(**BAD_DIRECTIVE), (7,)
    answer = client.ask

    async def slow(*kinds: object, **fields: object) -> object:
        reply = await answer(*kinds, **fields)  # type: ignore[arg-type]
        await machine.settle(runner)  # it ends while the reply is on its way
        return reply

    async def story() -> None:
        await contact.sync.sync()
        client.ask = slow  # type: ignore[assignment]
        await contact.sync.sync()
        client.ask = answer  # type: ignore[method-assign]
        assert client.asked[-1]["outcomes"][0].state is OutcomeState.PROGRESS
        assert machine.register.entries[-1].outcome == ROLLED_BACK
        await contact.sync.sync()
        said = client.asked[-1]["outcomes"]
        assert [(each.number, each.state) for each in said] == [(7, OutcomeState.ROLLED_BACK)]
        assert client.asked[-1]["running"][0].version == "1.0.0"
        await contact.sync.sync()
        assert client.asked[-1]["outcomes"] == (), "it was told, and says so"

    asyncio.run(story())


def test_what_runs_is_not_installed_again_however_often_it_is_ordered_and_does_not_hide_failures(contact: Contact) -> None:
    runner, client, machine = contact.runner, contact.client, contact.machine
    runner.reconfigure(AT_ONCE)

    async def ordered(number: int, **changes: object) -> None:
        client.directive = directive(number, **BAD_DIRECTIVE, **changes)
        await contact.sync.sync()
        await machine.settle(runner)

    async def story() -> None:
        await ordered(7)
        installed_at = runner.last_installed()
        assert machine.installer.active[0] == "2.0.0" and installed_at == NOW
        machine.installer.healthy = False
        machine.calls.before["prepare"] = [Declined("bundle-refused", "a path leaves the slot", final=True)]
        machine.updater.offer = replace(machine.updater.offer, version="3.0.0", build_id="b3")
        await ordered(8, version="3.0.0", build_id="b3")
        assert runner.update.attempts == 1
        machine.wall += 500
        for number in (9, 10, 11):
            await ordered(number)
            entry = machine.register.entries[-1]
            assert (entry.number, entry.outcome, entry.before, entry.attempts) == (number, INSTALLED, "2.0.0", 1)
            assert entry.reason == "present: this build ran already, nothing was installed"
        assert machine.installer.switched == [NEW.sha256], "one installation"
        assert runner.last_installed() == installed_at, "nothing was installed since"
        assert runner.update.attempts == 1, "what ran already does not make up for what failed"

    asyncio.run(story())


def test_a_withdrawal_of_what_runs_takes_nothing_away(contact: Contact) -> None:
    runner, client, machine = contact.runner, contact.client, contact.machine
    runner.reconfigure(AT_ONCE)

    async def story() -> None:
        client.directive = directive(**BAD_DIRECTIVE)
        await contact.sync.sync()
        await machine.settle(runner)
        register = machine.register.entries
        client.directive = directive(8, withdraws=7)
        for _ in range(2):
            await contact.sync.sync()
            await runner.run()
        assert machine.installer.active[0] == "2.0.0" and machine.register.entries == register
        assert len(machine.installer.withdrawals) == 1 and runner.update.step is Step.IDLE
        assert client.asked[-1]["running"][0].version == "2.0.0"
        assert [each.state for each in client.asked[-1]["outcomes"]] == [OutcomeState.COMMITTED]

    asyncio.run(story())


def test_a_directive_that_names_another_version_than_the_vendor_signed_is_not_carried_out(contact: Contact) -> None:
    """Whether the updater sees it or, captured, lets it pass."""
    runner, client, machine = contact.runner, contact.client, contact.machine
    runner.reconfigure(AT_ONCE)
    machine.calls.before["refresh"] = [Hindered("version-differs", "the version is 9.9 in the directive and 2.0.0 there")]

    async def story() -> None:
        client.directive = directive(version="9.9", **BAD_DIRECTIVE)
        await contact.sync.sync()
        await runner.run()
        shown = update_view(runner, machine.clock)
        assert "(version-differs)" in str(shown["problem"]) and shown["running"][0]["version"] == "1.0.0"
        machine.mono += 100
        await runner.run()
        assert "differs: the repository names pos 2.0.0" in machine.register.entries[-1].reason
        assert machine.installer.active[0] == "1.0.0" and not machine.updater.staged

    asyncio.run(story())


def test_a_server_that_orders_nothing_is_not_taken_to_say_that_this_is_the_newest(contact: Contact) -> None:
    async def story() -> None:
        await contact.sync.sync()
        shown = update_view(contact.runner, contact.machine.clock)
        assert (shown["state"], shown["update"], shown["checked"]) == ("idle", None, None)
        assert not contact.machine.register.entries and contact.runner.last_installed() == 0

    asyncio.run(story())
