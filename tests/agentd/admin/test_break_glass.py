"""A break-glass certificate opens one agent, once, for 4 hours of one boot, and not before its use is sealed."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentd.admin.handlers.access_handlers import AccessHandlers
from agentd.base.clock.timeanchor import Reading
from contracts.admin.adminauth import BREAK_GLASS_S, BREAK_GLASS_URI
from ipc.errors import ErrorCode
from tests.support.adminpki import DAY
from tests.support.outputs import assert_fits

from .world import ADMIN, CA, ROOT, AdminSocket, run

pytestmark = pytest.mark.system
START = 1_700_000_000
ENVELOPE = CA.issue("envelope", f"{BREAK_GLASS_URI}till-1", start=START, days=3650)


def code(reply: dict[str, Any]) -> int | None:
    return reply["error"]["code"] if "error" in reply else None


class Machine:
    """The machine's boots, and an agent on it that really begins and ends break-glass."""

    def __init__(self, world: AdminSocket) -> None:
        self.world, self.reading = world, Reading(1000, 7)
        world.access._clock.boot = lambda: self.reading  # type: ignore[method-assign,assignment]
        world.service._handlers.update(AccessHandlers(world.access).table())

    def passes(self, seconds: float) -> None:
        self.reading = Reading(self.reading.milliseconds + int(seconds * 1000), self.reading.epoch)
        self.world.till.mono += seconds

    def restart(self) -> None:
        """The agent's process only: what it knew itself is gone, what is sealed is not."""
        self.world.access._raised.clear()

    def reboot(self) -> None:
        self.reading = Reading(500, self.reading.epoch + 1)


def test_it_opens_nothing_before_it_is_begun(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        Machine(world)
        keeper = await world.connect()
        for op, params in (("rotate", {}), ("secrets", {}), ("session_begin", {}), ("break_glass_end", {})):
            assert code(await keeper.sign(ENVELOPE, op, **params)) == ErrorCode.UNAUTHENTICATED
        assert [op for op, _who in world.performed if op != "challenge"] == []
        assert code(await keeper.ask("break_glass_begin", why="x")) == ErrorCode.UNAUTHENTICATED

    run(tmp_path, work)


def test_it_counts_once_for_four_hours_and_says_so(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        machine, keeper = Machine(world), await world.connect()
        begun = await keeper.sign(ENVELOPE, "break_glass_begin", why="the leak")
        assert begun["seconds"] == BREAK_GLASS_S == 4 * 3600
        own = ("v", "id", "next_challenge")  # the command does not print these
        assert_fits("break-glass begin", {name: value for name, value in begun.items() if name not in own})
        (alert,) = world.records("access.break_glass")
        assert (alert["outcome"], alert["why"], alert["actor"]["name"]) == ("begun", "the leak", "envelope")
        assert world.store.kept == ["admin.break_glass"] or world.store.kept[-1] == "admin.break_glass"
        assert code(await keeper.sign(ENVELOPE, "rotate")) is None
        assert world.performed[-1][1]["break_glass"] is True
        machine.passes(BREAK_GLASS_S - 2)
        assert code(await keeper.sign(ENVELOPE, "secret_invalidate", version=3)) is None
        machine.passes(3)
        assert code(await keeper.sign(ENVELOPE, "rotate")) == ErrorCode.UNAUTHENTICATED
        assert code(await keeper.sign(ENVELOPE, "break_glass_begin", why="again")) == ErrorCode.REFUSED
        world.access.look()
        assert [each["outcome"] for each in world.records("access.break_glass")] == ["begun", "cleared"]

    run(tmp_path, work)


def test_a_restart_of_the_agent_changes_nothing_and_a_reboot_ends_it(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        machine, keeper = Machine(world), await world.connect()
        await keeper.sign(ENVELOPE, "break_glass_begin", why="x")
        machine.restart()
        world.access.look()
        assert code(await keeper.sign(ENVELOPE, "rotate")) is None
        assert len(world.records("access.break_glass")) == 2  # the new process raises it too
        machine.reboot()
        assert code(await keeper.sign(ENVELOPE, "rotate")) == ErrorCode.UNAUTHENTICATED
        assert code(await keeper.sign(ENVELOPE, "break_glass_begin", why="x")) == ErrorCode.REFUSED

    run(tmp_path, work)


def test_what_cannot_be_sealed_opens_nothing(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        Machine(world)
        keeper = await world.connect()
        world.store.broken = True
        assert code(await keeper.sign(ENVELOPE, "break_glass_begin", why="x")) == ErrorCode.UNAVAILABLE
        assert code(await keeper.sign(ENVELOPE, "rotate")) == ErrorCode.UNAUTHENTICATED
        world.store.broken = False
        assert code(await keeper.sign(ENVELOPE, "break_glass_begin", why="x")) is None

    run(tmp_path, work)


def test_it_is_for_one_agent(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        Machine(world)
        keeper = await world.connect()
        for name in ("till-2", "till-11", "TILL-1", "*", "till-1 "):
            other = CA.issue("envelope", f"{BREAK_GLASS_URI}{name}", start=START, days=3650)
            assert code(await keeper.sign(other, "break_glass_begin", why="x")) == ErrorCode.UNAUTHENTICATED, name
        two = CA.issue("two", f"{BREAK_GLASS_URI}till-1", f"{BREAK_GLASS_URI}till-2", start=START, days=3650)
        none = CA.issue("none", BREAK_GLASS_URI, start=START, days=3650)
        viewer = CA.issue("viewer", f"{BREAK_GLASS_URI}till-1", role="viewer", start=START, days=3650)
        assert code(await keeper.sign(two, "break_glass_begin", why="x")) == ErrorCode.UNAUTHENTICATED
        assert code(await keeper.sign(none, "break_glass_begin", why="x")) == ErrorCode.UNAUTHENTICATED
        assert code(await keeper.sign(viewer, "break_glass_begin", why="x")) == ErrorCode.REFUSED
        assert code(await keeper.sign(ADMIN, "break_glass_begin", why="x")) == ErrorCode.REFUSED
        assert world.store.record.access.break_glass == ()

    run(tmp_path, work)


def test_it_is_revoked_before_its_use_and_in_its_middle(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        Machine(world)
        keeper, root = await world.connect(), await world.connect(ROOT)
        early = CA.issue("early", f"{BREAK_GLASS_URI}till-1", start=START, days=3650)
        assert (await root.ask("admin_revoke", digests=[early.digest]))["revoked"] == 1
        assert code(await keeper.sign(early, "break_glass_begin", why="x")) == ErrorCode.UNAUTHENTICATED
        await keeper.sign(ENVELOPE, "break_glass_begin", why="x")
        await keeper.sign(ENVELOPE, "session_begin")
        assert code(await keeper.ask("secrets")) is None
        assert (await root.ask("admin_revoke", digests=[ENVELOPE.digest]))["revoked"] == 2
        assert code(await keeper.ask("secrets")) == ErrorCode.UNAUTHENTICATED
        assert code(await keeper.sign(ENVELOPE, "rotate")) == ErrorCode.UNAUTHENTICATED

    run(tmp_path, work)


def test_root_ends_it_and_it_does_not_begin_again(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        Machine(world)
        keeper, root = await world.connect(), await world.connect(ROOT)
        await keeper.sign(ENVELOPE, "break_glass_begin", why="x")
        await keeper.sign(ENVELOPE, "session_begin")
        assert (await root.ask("break_glass_end"))["ended"] == 1
        assert code(await keeper.ask("secrets")) == ErrorCode.UNAUTHENTICATED
        assert code(await keeper.sign(ENVELOPE, "rotate")) == ErrorCode.UNAUTHENTICATED
        assert code(await keeper.sign(ENVELOPE, "break_glass_begin", why="x")) == ErrorCode.REFUSED
        assert (await root.ask("break_glass_end"))["ended"] == 0

    run(tmp_path, work)


def test_two_beginnings_at_once_are_one(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        Machine(world)
        one, two = await world.connect(), await world.connect()
        replies = await asyncio.gather(*(each.sign(ENVELOPE, "break_glass_begin", why="x") for each in (one, two)))
        assert sorted(code(reply) or 0 for reply in replies) == [0, ErrorCode.REFUSED]
        assert len(world.store.record.access.break_glass) == 1

    run(tmp_path, work)


def test_a_used_one_is_remembered_until_it_has_certainly_ended(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        Machine(world)
        keeper = await world.connect()
        short = CA.issue("short", f"{BREAK_GLASS_URI}till-1", start=world.access._clock.certain() - DAY, days=30)
        await keeper.sign(short, "break_glass_begin", why="x")
        await keeper.sign(ENVELOPE, "break_glass_begin", why="x")
        assert len(world.store.record.access.break_glass) == 2

    run(tmp_path, work)
