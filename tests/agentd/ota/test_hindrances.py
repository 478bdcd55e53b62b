"""What a mirror or a full disk can bring about: an update that waits and says why, never one that locks."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agentd.base.errors import Refused
from agentd.ota.consent import Answer, Mode
from agentd.ota.hindrances import BUSY, DISK, MACHINE, PATIENCE_S, REPOSITORY, SURE, UNREACHABLE, Hindrance, alarming
from agentd.ota.runner import CAP_S
from agentd.ota.settings import Settings
from agentd.ota.sides import Declined, Hindered
from agentd.ota.table import DEADLINES, Step
from agentd.telemetry.updateview import update_view
from ipc.updatermessages import UpdaterCode
from tests.agentd.ota.test_runner import EVA, play
from updatetrust.judgement import Code
from updatetrust.metadata import Fault

from .machine import NEW, NOW, Killed, UpdatedMachine

CALLS = {
    "refresh": Step.OFFERED,
    "stage": Step.WINDOW,
    "prepare": Step.DOWNLOADED,
    "switch": Step.STAGED,
}
"""The call that fails, and the step at which the update then is."""


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[UpdatedMachine]:
    made = UpdatedMachine(tmp_path)
    yield made
    made.close()


def later(machine: UpdatedMachine, seconds: float) -> None:
    machine.wall += seconds
    machine.mono += seconds


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", ["digest-differs", "no-room", "machine"])
def test_it_is_tried_again_with_growing_pauses_and_succeeds_once_the_reason_is_gone(
    machine: UpdatedMachine, call: str, code: str
) -> None:
    machine.calls.before[call] = [Hindered(code, "why") for _ in range(7)]
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        pauses = []
        for tries in range(1, 8):
            await runner.run()
            assert (runner.update.step, runner.update.attempts) == (CALLS[call], 0)
            assert runner.hindrance is not None and runner.hindrance.tries == tries
            assert runner.hindrance.code == code and runner.hindrance.action
            assert alarming(runner.hindrance, int(machine.wall)) is (tries >= SURE)
            pauses.append(runner._again_at - machine.mono)
            later(machine, 1)
        assert pauses == sorted(pauses) and pauses[0] < 60 < pauses[-1] <= CAP_S
        await runner.run()
        assert machine.installer.active[0] == "2.0.0" and runner.hindrance is None

    play(story)


def test_a_shop_that_says_ready_again_and_again_shortens_no_pause(machine: UpdatedMachine) -> None:
    machine.settings = Settings(notice_s=0, consent=Mode.ASK)
    machine.calls.before["stage"] = [Hindered("unreachable", "why") for _ in range(3)]
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        for _ in range(3):
            await runner.run()
            at = runner._again_at
            runner.answered(Answer.READY, 0)
            assert runner._again_at == at > machine.mono
            later(machine, at - machine.mono)
        await runner.run()
        assert machine.installer.active[0] == "2.0.0"

    play(story)


@pytest.mark.parametrize("call", CALLS)
def test_it_never_locks_however_long_it_lasts_and_whatever_the_till_does(machine: UpdatedMachine, call: str) -> None:
    """A month of a full disk or a hostile mirror, on a till that is switched off each night."""
    machine.calls.before[call] = [Hindered("no-room", "why") for _ in range(100_000)]

    async def story() -> None:
        order = msgspec.structs.replace(NEW, not_after=NOW + 400 * 86_400)
        for day in range(30):
            runner = machine.start()
            await runner.hear(order, None, paused=False)
            for _ in range(8):
                await runner.run()
                assert (runner.update.attempts, runner.update.step is Step.LOCKED) == (0, False), f"day {day}"
                later(machine, 3600)
            await runner.stop()
            later(machine, 16 * 3600)
        assert all(not entry.attempts for entry in machine.register.entries)
        machine.calls.before.clear()
        runner = machine.start()
        await runner.hear(order, None, paused=False)
        await machine.settle(runner, step_s=3600)
        assert machine.installer.active[0] == "2.0.0"

    play(story)


def test_a_deadline_that_passed_while_the_till_was_off_does_not_end_what_can_go_on(machine: UpdatedMachine) -> None:
    machine.calls.before["prepare"] = [Hindered("no-room", "why")]

    async def story() -> None:
        runner = machine.start()
        await runner.hear(NEW, None, paused=False)
        await runner.run()
        limit = DEADLINES[Step.DOWNLOADED]
        assert limit is not None
        later(machine, limit + 1)
        await runner._keep_spent()
        runner = machine.start()
        await runner.run()
        assert machine.installer.active[0] == "2.0.0"

    play(story)


def test_a_package_that_is_bad_locks_as_before(machine: UpdatedMachine) -> None:
    machine.calls.before["prepare"] = [Declined("bundle-refused", "a path leaves the slot") for _ in range(3)]
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        await machine.settle(runner)
        for _ in range(4):
            later(machine, 3601)
            await runner.run()
        assert runner.update.step is Step.LOCKED and runner.update.attempts == 3

    play(story)


def test_what_was_not_staged_is_staged_again_and_is_no_failed_attempt(machine: UpdatedMachine) -> None:
    machine.calls.before["prepare"] = [Declined("not-staged", "stage it again", counted=False) for _ in range(5)]
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        for _ in range(6):
            await runner.run()
            assert runner.update.attempts == 0
            later(machine, 3601)
        assert machine.installer.active[0] == "2.0.0" and machine.calls.made.count("backup") == 6

    play(story)


def test_a_product_whose_backend_is_broken_waits_and_says_why(machine: UpdatedMachine) -> None:
    machine.installer.problem = "RAUC is gone"
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        for tries in range(1, SURE + 1):
            await runner.run()
            assert runner.update.step is Step.OFFERED and runner.hindrance is not None
            assert (runner.hindrance.code, runner.hindrance.text, runner.hindrance.tries) == ("machine", "RAUC is gone", tries)
            later(machine, CAP_S)
        assert alarming(runner.hindrance, int(machine.wall))
        assert update_view(runner, machine.clock)["running"][0]["problem"] == "RAUC is gone"
        with pytest.raises(Refused, match="cannot say what runs: RAUC is gone"):
            await machine.acts.roll_back("pos", "Eva", {})
        machine.installer.problem = ""
        await runner.run()
        assert machine.installer.active[0] == "2.0.0" and runner.update.attempts == 0

    play(story)


def test_a_way_back_after_the_commit_that_the_place_does_not_allow_ends(machine: UpdatedMachine) -> None:
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        await machine.settle(runner)
        machine.calls.before["roll_back"] = [Hindered("machine", "the slot is empty")]
        await machine.acts.roll_back("pos", "Eva", {})
        await runner.stop()
        await runner.run()
        assert (runner.update.step, machine.installer.active[0]) == (Step.IDLE, "2.0.0")
        assert machine.register.entries[-1].reason == "machine: the slot is empty"

    play(story)


def test_a_backend_that_is_broken_at_the_start_does_not_end_a_trial_that_it_cannot_see(machine: UpdatedMachine) -> None:
    machine.calls.kill_after = "switch"
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        with pytest.raises(Killed):
            await runner.run()
        machine.installer.problem = "RAUC is gone"
        again = machine.start()
        await again.run()
        assert again.update.step is Step.STAGED and again.hindrance is not None and again.hindrance.code == "machine"
        machine.installer.problem = ""
        later(machine, CAP_S)
        await again.run()
        assert machine.installer.active[0] == "2.0.0" and machine.register.entries[-1].outcome == "installed"

    play(story)


@pytest.mark.parametrize("call", ["prepare", "switch"])
def test_who_has_removed_the_reason_does_not_wait_for_the_end_of_a_pause(machine: UpdatedMachine, call: str) -> None:
    machine.calls.before[call] = [Hindered("no-room", "why") for _ in range(5)]
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        for _ in range(4):
            await runner.run()
        runner.tick()
        assert runner.update.step is CALLS[call] and runner._task is None, "a pause is under way"
        await machine.acts.pause("Eva", EVA, end=False)
        with pytest.raises(Refused, match="paused updates"):
            await machine.acts.install("Eva", EVA)
        await machine.acts.pause("Eva", EVA, end=True)
        runner._pause(CAP_S)
        with pytest.raises(Refused, match="under way"):
            await machine.acts.install("Eva", EVA, rehearsal=True)
        assert await machine.acts.install("Eva", EVA) == runner.update.order
        assert runner._task is not None
        await runner._task
        assert runner.hindrance is not None and runner.hindrance.tries == 5
        await machine.acts.install("Eva", EVA)
        await runner._task
        assert machine.installer.active[0] == "2.0.0" and machine.register.entries[-1].operator == "server"

    play(story)


def test_the_agents_own_disk_hinders_too(machine: UpdatedMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.calls.before["backup"] = [OSError(28, "No space left on device", "/var/lib/license-agent")]
    runner = machine.start()

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        await runner.run()
        assert runner.hindrance is not None and runner.hindrance.code == "no-room"
        later(machine, 61)
        await runner.run()
        assert machine.installer.active[0] == "2.0.0"

    play(story)


def test_every_code_of_the_tables_is_one_that_somebody_sends() -> None:
    of_the_installer = {"no-room", "configuration", "state", "machine", "config-not-kept"}
    known = {*map(str, UpdaterCode), *map(str, Code), *map(str, Fault), *of_the_installer}
    assert {*MACHINE, *REPOSITORY} <= known
    assert not set(MACHINE) & set(REPOSITORY)
    assert {"trust", "configuration", "state", "machine", DISK} <= MACHINE.keys(), "none of these is the package's fault"


def test_a_repository_out_of_reach_alarms_after_a_day_and_what_does_not_pass_at_once() -> None:
    away = Hindrance(UNREACHABLE, "", NOW, tries=99)
    assert not alarming(None, NOW) and not alarming(away, NOW + PATIENCE_S - 1) and alarming(away, NOW + PATIENCE_S)
    waits = Hindrance(BUSY, "", NOW, tries=99)
    assert "dpkg" in waits.action and not alarming(waits, NOW) and alarming(waits, NOW + PATIENCE_S)
    assert "connection" in away.action and "vendor has signed" in Hindrance("digest-differs", "", NOW).action
