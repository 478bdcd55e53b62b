"""Housekeeping goes on while a disk or the hardware does not answer; a chore that fails keeps no other from running."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agentd.daemon import LATE_S, Chore, Housekeeping


class Work:
    """Counts its runs; one that hangs does not come to its end until it is let go."""

    def __init__(self, *, hangs: bool = False, fails: bool = False) -> None:
        self.runs, self.ends = 0, 0
        self._hangs, self._fails = hangs, fails
        self.go = asyncio.Event()

    async def wait(self) -> None:
        self.runs += 1
        if self._hangs:
            await self.go.wait()
        if self._fails:
            raise OSError("no")
        self.ends += 1

    def now(self) -> None:
        self.runs += 1
        if self._fails:
            raise OSError("no")
        self.ends += 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def ticks(housekeeping: Housekeeping, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        clock.now += 1
        housekeeping.tick()
        for _ in range(5):
            await asyncio.sleep(0)


def run(check: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await check()

    asyncio.run(main())


def test_a_disk_that_does_not_answer_holds_up_its_own_lane_only(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        clock, stuck, behind, beside, every = Clock(), Work(hangs=True), Work(), Work(), Work()
        housekeeping = Housekeeping(
            clock,
            (
                Chore("every", 0, 0, every.now),
                Chore("stuck", 10, 10, stuck.wait, "disk"),
                Chore("behind", 0, 11, behind.wait, "disk"),
                Chore("beside", 10, 10, beside.wait, "hardware"),
            ),
        )
        await ticks(housekeeping, clock, 60)
        assert (every.runs, stuck.runs, behind.runs, beside.ends) == (60, 1, 0, 5)
        assert "waits for" not in caplog.text
        await ticks(housekeeping, clock, int(LATE_S))
        assert f"housekeeping waits for the disk, which has not answered for {LATE_S:g} s" in caplog.text
        stuck.go.set()
        await ticks(housekeeping, clock, 10)
        assert stuck.ends == 2 and behind.ends > 5
        await housekeeping.stop()

    run(check)


def test_a_chore_that_fails_keeps_no_other_from_running(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        clock, failing, sync, after, late = Clock(), Work(fails=True), Work(fails=True), Work(), Work()
        housekeeping = Housekeeping(
            clock,
            (
                Chore("sync", 0, 0, sync.now),
                Chore("failing", 0, 0, failing.wait, "disk"),
                Chore("after", 0, 0, after.wait, "disk"),
                Chore("late", 0, 0, late.now),
            ),
        )
        await ticks(housekeeping, clock, 3)
        assert failing.runs == sync.runs == after.ends == late.ends == 3

    run(check)
    assert "housekeeping failed: sync" in caplog.text and "housekeeping failed: failing" in caplog.text


def test_a_stop_waits_for_no_lane() -> None:
    async def check() -> None:
        clock, stuck = Clock(), Work(hangs=True)
        housekeeping = Housekeeping(clock, (Chore("stuck", 0, 0, stuck.wait, "disk"),))
        await ticks(housekeeping, clock, 1)
        await housekeeping.stop()
        assert (stuck.runs, stuck.ends) == (1, 0)

    run(check)
