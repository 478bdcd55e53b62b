"""What moves a running update: the server, administrators, the shop, time; and what each may not interrupt."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest

from agentd.base.errors import Refused
from agentd.ota.consent import Answer, Mode
from agentd.ota.runner import WARN_S
from agentd.ota.settings import Settings
from agentd.ota.sides import Declined, Progress, Unreachable
from agentd.ota.table import Order, Step
from agentd.telemetry.updateview import update_view
from common.openings import Calendar, Frozen, Window

from .machine import AT_ONCE, NEW, NOW, UpdatedMachine

NEWER = msgspec.structs.replace(NEW, number=8, sha256="cd" * 32)
EVA = {"uid": 1000, "gid": 1000, "pid": 7}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[UpdatedMachine]:
    made = UpdatedMachine(tmp_path)
    yield made
    made.close()


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await story()

    asyncio.run(whole())


async def offer(machine: UpdatedMachine, order: Order = NEW) -> None:
    await machine.runner.hear(order, None, paused=False)
    await machine.runner.run()


def later(machine: UpdatedMachine, seconds: float) -> None:
    machine.wall += seconds
    machine.mono += seconds


def test_an_update_waits_for_its_notice_with_the_package_on_disk(machine: UpdatedMachine) -> None:
    machine.settings = replace(AT_ONCE, notice_s=48 * 3600)
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        assert runner.update.step is Step.WINDOW
        assert runner.waits is not None and (runner.waits.code, runner.waits.until) == ("notice", NOW + 48 * 3600)
        assert machine.updater.staged == {NEW.sha256}
        assert runner.update.order is not None and runner.update.order.notes == "what is new"
        later(machine, 48 * 3600)
        await runner.run()
        assert runner.update.step is Step.IDLE and machine.installer.active[0] == "2.0.0"

    play(story)


def test_a_window_that_closes_in_the_middle_sends_the_update_back_to_wait(machine: UpdatedMachine) -> None:
    opens = datetime.fromtimestamp(NOW, UTC)
    start, end = opens.time(), time((opens.hour + 1) % 24, opens.minute)
    zone = ZoneInfo("UTC")
    machine.settings = replace(AT_ONCE, calendar=Calendar(zone, Window(zone, frozenset(range(7)), start, end)))
    runner = machine.start()
    real = machine.installer.prepare

    async def slow(product: str, sha256: str, progress: Progress) -> None:
        later(machine, 3600)
        await real(product, sha256, progress)

    machine.installer.prepare = slow  # type: ignore[method-assign]

    async def story() -> None:
        await offer(machine)
        assert runner.update.step is Step.WINDOW and not machine.installer.switched
        assert runner.waits is not None and runner.waits.code == "window"
        machine.installer.prepare = real  # type: ignore[method-assign]
        later(machine, 23 * 3600)
        await runner.run()
        assert machine.installer.active[0] == "2.0.0"

    play(story)


def test_the_shop_is_asked_until_the_last_time(machine: UpdatedMachine) -> None:
    zone, now = ZoneInfo("UTC"), datetime.fromtimestamp(NOW, UTC)
    last = Window(zone, frozenset(range(7)), time((now.hour + 1) % 24, 0), time((now.hour + 3) % 24, 0))
    machine.settings = replace(AT_ONCE, consent=Mode.ASK, last=last)
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        assert runner.waits is not None and runner.waits.code == "consent"
        runner.answered(Answer.BUSY, 4 * 3600)
        later(machine, 20 * 60)
        await runner.run()
        assert runner.update.step is Step.WINDOW and runner.waits is not None
        later(machine, 3600)  # the last time has come
        await runner.run()
        assert machine.installer.active[0] == "2.0.0"

    play(story)


def test_a_shop_that_is_ready_is_taken_at_its_word_at_once(machine: UpdatedMachine) -> None:
    machine.settings = replace(AT_ONCE, consent=Mode.ASK)
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        assert runner.update.step is Step.WINDOW
        runner.answered(Answer.READY, 0)
        await runner.run()
        assert machine.installer.active[0] == "2.0.0"

    play(story)


def test_a_till_that_is_quiet_needs_no_answer(machine: UpdatedMachine) -> None:
    machine.settings = replace(AT_ONCE, consent=Mode.QUIET)
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        for _ in range(3):
            machine.core.counters.validations += 1
            later(machine, 14 * 60)
            runner.tick()
            await runner.run()
            assert runner.update.step is Step.WINDOW
        later(machine, 15 * 60)
        await runner.run()
        assert machine.installer.active[0] == "2.0.0"

    play(story)


@pytest.mark.parametrize("paused_by", ["server", "administrator"])
def test_a_pause_lets_nothing_begin_and_ends(machine: UpdatedMachine, paused_by: str) -> None:
    runner = machine.start()

    async def story() -> None:
        if paused_by == "administrator":
            await machine.acts.pause("Eva", EVA, end=False)
            runner_again = machine.start()  # it outlives the process
            await runner_again.hear(NEW, None, paused=False)
        else:
            runner_again = runner
            await runner.hear(NEW, None, paused=True)
        await runner_again.run()
        assert runner_again.update.step is Step.WINDOW and not machine.installer.switched
        with pytest.raises(Refused, match="has paused updates"):
            await machine.acts.install("Eva", EVA)
        if paused_by == "administrator":
            await machine.acts.pause("Eva", EVA, end=True)
        else:
            await runner.hear(NEW, None, paused=False)
        later(machine, 61)
        await runner_again.run()
        assert machine.installer.active[0] == "2.0.0"

    play(story)


def test_the_server_takes_back_what_is_not_switched_yet(machine: UpdatedMachine) -> None:
    machine.settings = Settings(consent=Mode.NONE)
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        assert runner.update.step is Step.WINDOW
        await runner.hear(None, 7, paused=False)
        assert (runner.update.step, runner.update.done, runner.known) == (Step.IDLE, 7, 7)
        assert machine.register.entries[-1].outcome == "withdrawn"
        assert [(report.number, report.state) for report in runner.reports()] == [(7, "refused")]
        await runner.hear(NEW, None, paused=False)  # an old reply that came late
        assert runner.update.step is Step.IDLE
        await runner.acknowledged((7,), ())
        assert len(runner.reports()) == 1, "nobody has told the server"
        await runner.acknowledged((7,), runner.ended)
        assert runner.reports() == ()

    play(story)


def test_a_newer_directive_takes_the_place_of_one_that_waits(machine: UpdatedMachine) -> None:
    machine.settings = Settings(consent=Mode.NONE)
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        await runner.hear(NEWER, None, paused=False)
        assert runner.update.order is not None and runner.update.order.number == 8
        await runner.hear(NEW, None, paused=False)
        assert runner.update.order is not None and runner.update.order.number == 8

    play(story)


def test_a_download_is_interrupted_by_a_withdrawal_and_a_switch_is_not(machine: UpdatedMachine) -> None:
    runner = machine.start()
    begun, go_on = asyncio.Event(), asyncio.Event()
    real = machine.updater.stage

    async def endless(order: Order, now: int, rate: int | None, progress: Progress) -> None:
        begun.set()
        await go_on.wait()
        await real(order, now, rate, progress)

    machine.updater.stage = endless  # type: ignore[method-assign]

    async def story() -> None:
        await runner.hear(NEW, None, paused=False)
        runner.tick()
        await begun.wait()
        await runner.hear(None, 7, paused=False)
        assert runner.update.step is Step.IDLE
        await runner.stop()

        begun.clear()
        machine.updater.stage = real  # type: ignore[method-assign]
        switch = machine.installer.switch

        async def slow(product: str, sha256: str) -> None:
            begun.set()
            await go_on.wait()
            await switch(product, sha256)

        machine.installer.switch = slow  # type: ignore[method-assign]
        await runner.hear(msgspec.structs.replace(NEW, number=9), None, paused=False)
        working = asyncio.create_task(runner.run())
        await begun.wait()
        await runner.hear(None, 9, paused=False)
        assert runner.update.step is Step.STAGED
        with pytest.raises(Refused, match="wait until it has ended"):
            await machine.acts.roll_back("pos", "Eva", EVA)
        go_on.set()
        await working
        assert machine.installer.active[0] == "2.0.0"

    play(story)


def test_before_the_switch_the_server_is_asked_once_more(machine: UpdatedMachine) -> None:
    machine.withdrawn = True
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        assert runner.update.step is Step.IDLE and not machine.installer.switched
        assert machine.register.entries[-1].outcome == "withdrawn"

    play(story)


def test_an_administrator_installs_at_once_but_not_beyond_the_directive(machine: UpdatedMachine) -> None:
    machine.settings = Settings(calendar=Calendar(UTC, None, (Frozen(date(2020, 1, 1), date(2099, 1, 1)),)), consent=Mode.ASK)
    runner = machine.start()

    async def story() -> None:
        with pytest.raises(Refused, match="no update is offered"):
            await machine.acts.install("Eva", EVA)
        await offer(machine)
        assert runner.update.step is Step.WINDOW
        await machine.acts.install("Eva", EVA)
        await runner.stop()
        await runner.run()
        assert machine.installer.active[0] == "2.0.0"
        assert machine.register.entries[-1].operator == "Eva"

    play(story)


def test_a_directive_that_ends_while_it_waits_is_not_installed(machine: UpdatedMachine) -> None:
    machine.settings = Settings(consent=Mode.NONE)
    runner = machine.start()

    async def story() -> None:
        await offer(machine, msgspec.structs.replace(NEW, not_after=NOW + 3600))
        later(machine, 3601)
        await runner.run()
        assert (runner.update.step, runner.update.done) == (Step.IDLE, 7)

    play(story)


def test_a_package_is_installed_at_once_and_the_servers_directive_afterwards(machine: UpdatedMachine) -> None:
    machine.settings = Settings(consent=Mode.NONE)
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        taken = await machine.acts.take(3, NEW.sha256, "Eva", EVA)
        assert (taken.number, taken.source, taken.version) == (0, "package", "2.0.0")
        await runner.stop()
        await runner.run()
        assert machine.installer.active[0] == "2.0.0"
        assert machine.register.entries[-1].operator == "Eva"
        assert runner.update.done == 0
        await runner.hear(NEW, None, paused=False)
        assert runner.update.step is Step.OFFERED

    play(story)


def test_a_package_that_the_updater_refuses_changes_nothing(machine: UpdatedMachine) -> None:
    runner = machine.start()
    machine.calls.before["take"] = [Declined("bundle", "the file is not an update bundle")]

    async def story() -> None:
        with pytest.raises(Refused, match="not accepted: bundle: the file is not an update bundle"):
            await machine.acts.take(3, NEW.sha256, "Eva", EVA)
        assert runner.update.step is Step.IDLE

    play(story)


def test_another_package_than_the_one_that_was_asked_for_is_not_installed(machine: UpdatedMachine) -> None:
    runner = machine.start()

    async def story() -> None:
        with pytest.raises(Refused, match="its SHA-256 is another"):
            await machine.acts.take(3, "cd" * 32, "Eva", EVA)
        assert runner.update.step is Step.IDLE

    play(story)


def test_an_administrator_goes_back_after_the_commit_and_it_counts_as_no_failure(machine: UpdatedMachine) -> None:
    runner = machine.start()

    async def story() -> None:
        with pytest.raises(Refused, match="no product 'till'"):
            await machine.acts.roll_back("till", "Eva", EVA)
        with pytest.raises(Refused, match=r"no version of pos before 1\.0\.0"):
            await machine.acts.roll_back("pos", "Eva", EVA)
        await offer(machine)
        assert await machine.acts.roll_back("pos", "Eva", EVA) == "1.0.0"
        await runner.stop()
        await runner.run()
        assert (machine.installer.active[0], runner.update.attempts) == ("1.0.0", 0)
        assert machine.register.entries[-1].reason == "operator: Eva went back"

    play(story)


def test_when_signed_metadata_ends_is_known_after_a_restart_too(machine: UpdatedMachine) -> None:
    until = NOW + 31 * 86_400
    machine.updater.offer = replace(machine.updater.offer, signed_until=until, signed_role="targets")
    runner = machine.start()

    async def story() -> None:
        assert runner.signed_role_ends() is None, "nothing was read"
        await offer(machine)
        await machine.settle(runner)
        assert runner.signed_role_ends() is None, "it ends later"

    asyncio.run(story())
    machine.wall = until - WARN_S - 1
    again = machine.start()
    assert again.signed_role_ends() is None
    assert update_view(again, machine.clock)["signed"] == {"until": until, "role": "targets"}
    machine.wall += 1
    assert again.signed_role_ends() == (until, "targets")


def test_what_people_have_signed_again_is_known_within_a_day_without_an_update(machine: UpdatedMachine) -> None:
    soon, later_on = NOW + 20 * 86_400, NOW + 300 * 86_400
    machine.updater.offer = replace(machine.updater.offer, signed_until=soon, signed_role="releases")
    machine.calls.before["look"] = [Unreachable("no route"), Declined("malformed", "a former updater")]
    runner = machine.start()

    async def day() -> None:
        for _ in range(24 * 60):
            later(machine, 60)
            await runner.run()

    async def story() -> None:
        await runner.run()
        assert "look" not in machine.calls.made, "a fleet that starts at once does not look at once"
        await day()
        assert runner.signed_role_ends() == (soon, "releases") and machine.calls.made.count("look") == 3
        assert (runner.problem, runner.hindrance, runner.update.step) == ("", None, Step.IDLE)
        machine.updater.offer = replace(machine.updater.offer, signed_until=later_on)
        await day()
        assert runner.signed_role_ends() is None and machine.calls.made.count("look") == 4
        assert machine.start().situation.signed == (later_on, "releases"), "it outlives the process"
        machine.calls.made.clear()
        again = machine.start()
        again.look_soon()
        await again.run()
        assert machine.calls.made.count("look") == 1 and again.situation.refreshed == int(machine.wall)

    play(story)


def test_a_rehearsal_proves_the_new_version_and_goes_back(machine: UpdatedMachine) -> None:
    machine.settings = Settings(consent=Mode.NONE, test_bench=True)
    runner = machine.start()

    async def story() -> None:
        await runner.run()
        assert not runner.rehearsal_overdue()
        later(machine, 93 * 86_400)
        assert runner.rehearsal_overdue()
        await offer(machine, msgspec.structs.replace(NEW, received=int(machine.wall), not_after=NOW + 200 * 86_400))
        await machine.acts.install("Eva", EVA, rehearsal=True)
        await runner.stop()
        await runner.run()
        assert (machine.installer.active[0], machine.installer.in_trial) == ("1.0.0", False)
        assert machine.register.entries[-1].outcome == "rehearsed"
        assert not runner.rehearsal_overdue() and runner.update.attempts == 0
        assert "prove" in machine.calls.made

    play(story)


def test_what_runs_already_is_not_installed_again(machine: UpdatedMachine) -> None:
    machine.installer.active = ("2.0.0", "b2")
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        assert runner.update.step is Step.IDLE and "stage" not in machine.calls.made
        assert [report.state for report in runner.reports()] == ["committed"]

    play(story)


def test_a_product_that_root_has_not_named_is_refused(machine: UpdatedMachine) -> None:
    runner = machine.start()

    async def story() -> None:
        await offer(machine, msgspec.structs.replace(NEW, product="fridge"))
        assert (runner.update.step, runner.update.attempts, runner.update.done) == (Step.IDLE, 0, 7)
        assert machine.register.entries[-1].reason == "unknown-product: installer.toml has no product 'fridge'"

    play(story)


def test_an_installer_that_is_away_keeps_everything_as_it_is(machine: UpdatedMachine) -> None:
    machine.calls.before["products"] = [Unreachable("no installer")] * 3
    runner = machine.start()

    async def story() -> None:
        for _ in range(3):
            await runner.run()
            assert runner.problem == "no installer"
        await offer(machine)
        assert machine.installer.active[0] == "2.0.0"

    play(story)


def test_a_rollback_that_fails_is_tried_until_it_works(machine: UpdatedMachine) -> None:
    machine.installer.healthy = False
    machine.calls.before["roll_back"] = [Declined("busy", "another installation runs")] * 3
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        await machine.settle(runner)
        assert (machine.installer.active[0], machine.installer.in_trial) == ("1.0.0", False)

    play(story)


def test_a_way_back_that_the_installer_refuses_leaves_the_version_that_runs(machine: UpdatedMachine) -> None:
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        machine.calls.before["roll_back"] = [Declined("below-floor", "1.0.0 is below the floor")]
        await machine.acts.roll_back("pos", "Eva", EVA)
        await runner.stop()
        await runner.run()
        assert (runner.update.step, machine.installer.active[0]) == (Step.IDLE, "2.0.0")
        entry = machine.register.entries[-1]
        assert (entry.outcome, entry.reason) == ("failed", "below-floor: 1.0.0 is below the floor")

    play(story)


def test_a_failure_after_the_preparation_ends_it_at_the_installer_too(machine: UpdatedMachine) -> None:
    machine.calls.before["switch"] = [Declined("busy", "the unit cannot be restarted", final=True)]
    runner = machine.start()

    async def story() -> None:
        await offer(machine)
        assert (runner.update.step, machine.installer.active[0]) == (Step.IDLE, "1.0.0")
        assert not machine.installer.prepared

    play(story)


def test_a_pos_application_sees_what_waits_for_it(machine: UpdatedMachine) -> None:
    machine.settings = replace(AT_ONCE, consent=Mode.ASK)
    runner = machine.start()

    async def story() -> None:
        assert runner.consent("", 0) == {
            "pending": False, "product": None, "version": None, "notes": None, "not_before": None,
        }  # fmt: skip
        await offer(machine)
        found = runner.consent("busy", 600)
        assert (found["pending"], found["product"], found["version"], found["notes"]) == (True, "pos", "2.0.0", "what is new")
        assert runner.situation.said is not None and runner.situation.said.answer is Answer.BUSY
        runner.consent("ready", 0)
        await runner.run()
        assert machine.installer.active[0] == "2.0.0" and not runner.consent("", 0)["pending"]

    play(story)
