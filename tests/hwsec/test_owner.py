"""One thread owns the hardware: callers wait no longer than their deadline, and one hang costs one thread."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hwsec.errors import BackendHung, BackendUnavailable
from hwsec.owner import REPLACEMENTS, HardwareOwner
from tests.support.waiting import READY_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
SOON = 0.05
LATER = 1.0
"""As `SOON`, where the call must have begun by then: a thread may have to wait for a processor."""
LONG = READY_S
"""Never waited for: what has this deadline is answered long before, or the test fails."""


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """Calls that wait for it hang; at the end they are let go."""
    event = threading.Event()
    yield event
    event.set()


async def started(name: str = "hardware") -> HardwareOwner:
    """An owner whose thread has got as far as waiting for calls."""
    owner = HardwareOwner(name)
    await owner.run(lambda: None, LONG)
    return owner


def living(owner: HardwareOwner) -> list[threading.Thread]:
    """Its threads; the name is that of one owner only."""
    return [thread for thread in threading.enumerate() if thread.name == owner._name]


async def hang(owner: HardwareOwner, stuck: threading.Event) -> None:
    """Has a call hang; returns once the owner has judged it. One that began late, on a slow machine, is judged later."""
    await owner.run(lambda: None, LONG)
    began: list[float] = []

    def hangs() -> None:
        began.append(time.monotonic())
        stuck.wait()

    while True:
        asked = time.monotonic()
        try:
            await owner.run(hangs, SOON)
        except BackendHung as error:
            assert "did not answer" in str(error)
            if began[0] - asked > SOON / 4:
                await asyncio.sleep(began[0] - asked)
            return
        except BackendUnavailable:
            continue  # it was not begun in time, so it does not hang
        raise AssertionError("the call came back")


def waiting(
    begun: threading.Event, release: threading.Event, done: threading.Event | None = None
) -> Callable[[], threading.Thread]:
    """A call that tells when it begins, waits, tells when it is done, and gives its thread."""

    def call() -> threading.Thread:
        begun.set()
        release.wait()
        if done is not None:
            done.set()
        return threading.current_thread()

    return call


def fails() -> None:
    raise LookupError("from the call")


def test_a_call_gives_what_it_gives() -> None:
    async def scenario() -> None:
        owner = HardwareOwner()
        assert await owner.run(lambda: 42, LONG) == 42
        with pytest.raises(LookupError, match="from the call"):
            await owner.run(fails, LONG)
        assert await owner.run(lambda: "still there", LONG) == "still there"

    asyncio.run(scenario())


def test_all_calls_run_in_order_on_one_daemon_thread_of_its_own() -> None:
    async def scenario() -> None:
        owner = HardwareOwner("the owner")
        order: list[int] = []
        threads = await asyncio.gather(*(owner.run(lambda n=n: seen(n, order), LONG) for n in range(20)))  # type: ignore[misc]
        assert order == list(range(20))
        assert len(set(threads)) == 1
        thread = threads[0]
        assert thread is not threading.current_thread()
        assert thread.daemon
        assert thread.name == "the owner"

    def seen(number: int, order: list[int]) -> threading.Thread:
        order.append(number)
        return threading.current_thread()

    asyncio.run(scenario())


def test_a_call_that_raises_a_timeout_of_its_own_is_no_hang(stuck: threading.Event) -> None:
    def times_out() -> None:
        raise TimeoutError("of the call")

    async def scenario() -> None:
        owner = HardwareOwner()
        for _time in range(REPLACEMENTS + 2):
            with pytest.raises(TimeoutError, match="of the call"):
                await owner.run(times_out, LONG)
        assert not owner.hung

    asyncio.run(scenario())


def test_past_its_deadline_a_call_is_given_up_and_its_thread_replaced(stuck: threading.Event) -> None:
    async def scenario() -> None:
        owner = HardwareOwner()
        before = await owner.run(threading.current_thread, LONG)
        begin = time.monotonic()
        await hang(owner, stuck)
        assert time.monotonic() - begin < LONG / 2
        after = await owner.run(threading.current_thread, LONG)
        assert after is not before
        assert not owner.hung

    asyncio.run(scenario())


def test_threads_are_replaced_twice_and_then_the_hardware_is_hung(stuck: threading.Event) -> None:
    async def scenario() -> None:
        owner = HardwareOwner()
        for _time in range(REPLACEMENTS):
            await hang(owner, stuck)
            assert not owner.hung
            assert await owner.run(lambda: "served", LONG) == "served"
        await hang(owner, stuck)
        assert owner.hung
        called: list[int] = []
        begin = time.monotonic()
        for _time in range(2):
            with pytest.raises(BackendHung, match="has stopped answering"):
                await owner.run(lambda: called.append(1), LONG)
        assert time.monotonic() - begin < LONG / 2
        assert called == []

    assert REPLACEMENTS == 2
    asyncio.run(scenario())


@pytest.mark.parametrize("first", range(REPLACEMENTS + 1))
def test_when_a_call_comes_back_the_hardware_is_asked_again(first: int) -> None:
    """Whichever of the hanging calls it is; then all places are free again."""

    async def scenario() -> None:
        owner = await started(f"owner {first}")
        abandoned: list[int] = []
        owner.on_abandon = lambda: abandoned.append(1)
        events = [threading.Event() for _ in range(REPLACEMENTS + 1)]
        for event in events:
            await hang(owner, event)
        assert owner.hung
        assert len(abandoned) == REPLACEMENTS + 1
        events[first].set()
        while owner.hung:
            await asyncio.sleep(0.001)
        assert await owner.run(lambda: "served", LONG) == "served"
        threads = {await owner.run(threading.current_thread, LONG) for _time in range(20)}
        assert len(threads) == 1
        for event in events:
            event.set()
        await asyncio.to_thread(wait_until, lambda: len(living(owner)) == 1, "the calls that came back keep their threads")
        again = threading.Event()
        for _time in range(REPLACEMENTS):
            await hang(owner, again)
            assert not owner.hung
        again.set()

    asyncio.run(scenario())


def test_what_is_abandoned_is_told_before_anything_else_runs(stuck: threading.Event) -> None:
    async def scenario() -> None:
        owner = await started()
        order: list[str] = []
        owner.on_abandon = lambda: order.append("abandoned")
        first, second = await asyncio.gather(
            owner.run(stuck.wait, LATER), owner.run(lambda: order.append("next"), LONG), return_exceptions=True
        )
        assert isinstance(first, BackendHung)
        assert second is None
        assert order == ["abandoned", "next"]

    asyncio.run(scenario())


def test_what_waited_behind_a_hang_is_served_by_the_replacement(stuck: threading.Event) -> None:
    async def scenario() -> None:
        owner = await started()
        first, second = await asyncio.gather(
            owner.run(stuck.wait, LATER), owner.run(lambda: "served", LONG), return_exceptions=True
        )
        assert isinstance(first, BackendHung)
        assert second == "served"

    asyncio.run(scenario())


def test_one_hang_costs_one_thread_however_many_wait(stuck: threading.Event) -> None:
    async def scenario() -> None:
        owner = await started()
        waiting = [owner.run(stuck.wait, LATER)] + [owner.run(lambda: True, LATER) for _number in range(8)]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(answers[0], BackendHung)
        for answer in answers[1:]:
            assert answer is True or isinstance(answer, BackendUnavailable)
        assert not owner.hung
        for _time in range(REPLACEMENTS - 1):
            await hang(owner, stuck)
        assert not owner.hung
        assert await owner.run(lambda: "served", LONG) == "served"

    asyncio.run(scenario())


def test_a_slow_call_within_its_deadline_keeps_the_hardware_to_itself(stuck: threading.Event) -> None:
    """Two threads on one TPM would tear each other's sessions; who cannot wait gets an answer, and is not run later."""

    async def scenario() -> None:
        owner = HardwareOwner()
        late: list[str] = []
        begun = threading.Event()
        slow = asyncio.ensure_future(owner.run(waiting(begun, stuck), LONG))
        assert await asyncio.to_thread(begun.wait, LONG)
        for _time in range(REPLACEMENTS + 2):
            with pytest.raises(BackendUnavailable, match="busy") as caught:
                await owner.run(lambda: late.append("ran"), SOON / 2)
            assert not isinstance(caught.value, BackendHung)
        assert not owner.hung
        assert not slow.done()
        stuck.set()
        thread = await slow
        assert await owner.run(threading.current_thread, LONG) is thread
        assert late == []

    asyncio.run(scenario())


class Clock:
    """Stands in for the module `time`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_call_that_has_only_just_begun_is_not_taken_for_a_hang(
    stuck: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had waited behind others: its caller leaves in time, its thread gets the time that a call has."""
    clock = Clock()

    async def scenario() -> None:
        owner = HardwareOwner()
        thread = await owner.run(threading.current_thread, LONG)
        for _time in range(REPLACEMENTS + 2):
            stuck.clear()
            await hang(owner, stuck)
            stuck.set()
            assert await owner.run(threading.current_thread, LONG) is thread
        assert not owner.hung

        stuck.clear()
        await hang(owner, stuck)
        clock.now += 2 * SOON
        assert await owner.run(threading.current_thread, LONG) is not thread

    monkeypatch.setattr("hwsec.owner.time", clock)
    asyncio.run(scenario())


def test_an_abandoned_thread_that_wakes_takes_no_more_calls() -> None:
    async def scenario() -> None:
        owner = await started()
        woken, release = threading.Event(), threading.Event()
        abandoned: list[threading.Thread] = []

        def sleeps() -> None:
            abandoned.append(threading.current_thread())
            release.wait()
            woken.set()

        with pytest.raises(BackendHung):
            await owner.run(sleeps, LATER)
        release.set()
        await asyncio.to_thread(woken.wait)
        await asyncio.to_thread(abandoned[0].join, READY_S)
        assert not abandoned[0].is_alive()
        threads = {await owner.run(threading.current_thread, LONG) for _time in range(20)}
        assert len(threads) == 1
        assert abandoned[0] not in threads

    asyncio.run(scenario())


def test_a_caller_that_leaves_does_not_hide_a_hang(stuck: threading.Event) -> None:
    async def scenario() -> None:
        owner = HardwareOwner()
        begun = threading.Event()
        await owner.run(lambda: None, LONG)  # the thread runs, so that the next call begins at once
        leaver = asyncio.ensure_future(owner.run(waiting(begun, stuck), 5 * LATER))
        assert await asyncio.to_thread(begun.wait, LONG)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert await owner.run(lambda: "served", LONG) == "served"

    asyncio.run(scenario())


def test_a_caller_that_leaves_stops_no_call_that_has_begun() -> None:
    async def scenario() -> None:
        owner = HardwareOwner()
        begun, release, done = threading.Event(), threading.Event(), threading.Event()
        leaver = asyncio.ensure_future(owner.run(waiting(begun, release, done), LONG))
        assert await asyncio.to_thread(begun.wait, LONG)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        release.set()
        assert await owner.run(done.is_set, LONG)

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, Exception])
def test_no_error_of_a_call_ends_the_thread(error: Callable[[], BaseException]) -> None:
    async def scenario() -> BaseException | None:
        def fails() -> None:
            raise error()

        owner = HardwareOwner()
        future = asyncio.ensure_future(catch(owner, fails))
        caught = await future
        assert await owner.run(lambda: "served", LONG) == "served"
        return caught

    async def catch(owner: HardwareOwner, call: Callable[[], None]) -> BaseException | None:
        try:
            await owner.run(call, LONG)
        except BaseException as caught:
            return caught
        return None

    assert type(asyncio.run(scenario())) is error


_STOPS_WHILE_HUNG = """
import asyncio, threading
from hwsec.errors import BackendHung
from hwsec.owner import HardwareOwner

async def main():
    owner = HardwareOwner()
    try:
        await owner.run(threading.Event().wait, 0.01)
    except BackendHung:
        print("hung")

asyncio.run(main())
"""


@pytest.mark.system
def test_a_process_stops_although_its_hardware_hangs() -> None:
    told = subprocess.run(
        [sys.executable, "-c", _STOPS_WHILE_HUNG], cwd=ROOT, capture_output=True, text=True, timeout=READY_S, check=True
    )
    assert told.stdout.strip() == "hung"
    assert told.stderr == ""
