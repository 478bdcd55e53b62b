"""Gives the hardware one owner thread; others ask it and wait no longer than their deadline.

A call into a TPM library cannot be cancelled. So the thread is a daemon thread: past its deadline it is abandoned, with its
connection, and replaced; at most `REPLACEMENTS` may hang beside the one that serves; a stop of the process never joins them.
Calls that waited behind the one that hangs go to the replacement. The abandoned call still holds the objects it was made with,
so `on_abandon` must see to new ones before anything else runs. A call that comes back after all gives its place back.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .errors import BackendHung, BackendUnavailable

T = TypeVar("T")
REPLACEMENTS = 2


class _Job:
    """A call, and how far it has come. `future` is done once the caller has a result or an error."""

    __slots__ = ("call", "finished", "future", "started")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.future: Future[Any] = Future()
        self.started: float | None = None
        self.finished = False


class HardwareOwner:
    """Runs calls one after another on a thread of their own.

    Attributes:
        on_abandon: called on the event loop when a call is abandoned, before another thread replaces it.
    """

    def __init__(self, name: str = "hardware") -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the jobs' states and the two numbers below
        self._current = 0
        self._abandoned = 0
        self._hung = False
        self.on_abandon: Callable[[], None] = lambda: None
        self._start()

    def _start(self) -> None:
        threading.Thread(target=self._serve, args=(self._current,), name=self._name, daemon=True).start()

    async def run(self, call: Callable[[], T], deadline: float) -> T:
        """Runs `call` on the owner thread and returns what it returns. Once begun, it is not stopped by a cancellation.

        Args:
            call: does its work without regard to the event loop.
            deadline: seconds until the caller stops waiting.

        Raises:
            BackendHung: `call` was begun and not done in time; the thread that runs it is abandoned.
            BackendUnavailable: `call` was not begun in time, because others were; it will not be.
            Exception: what `call` raised.
        """
        if self._hung:
            raise BackendHung("the hardware has stopped answering; it is asked again when an earlier call comes back")
        job = _Job(call)
        self._jobs.put(job)
        timer = asyncio.get_running_loop().call_later(deadline, self._expire, job, deadline)
        try:
            result: T = await asyncio.shield(asyncio.wrap_future(job.future))
            return result
        finally:
            if job.finished:
                timer.cancel()

    def _expire(self, job: _Job, deadline: float) -> None:
        """Gives the caller its answer, and judges the thread; runs on the event loop."""
        with self._lock:
            if job.finished:
                return
            if job.started is None:
                # Another call is being run, and has a deadline of its own.
                job.finished = True
                job.future.set_exception(BackendUnavailable(f"the hardware was busy for {deadline:g} s"))
                return
            if not job.future.done():
                job.future.set_exception(BackendHung(f"the hardware did not answer within {deadline:g} s"))
            left = job.started + deadline - time.monotonic()
            if left > deadline / 2:
                # It waited for most of its time and has only just begun: that is no sign of a hang yet.
                asyncio.get_running_loop().call_later(left, self._expire, job, deadline)
                return
            self._replace()

    def _replace(self) -> None:
        if self._hung:
            return
        self.on_abandon()
        if self._abandoned >= REPLACEMENTS:
            self._hung = True
            return
        self._abandoned += 1
        self._current += 1
        self._start()

    @property
    def hung(self) -> bool:
        """Whether as many calls hang as there may be, and none has come back."""
        return self._hung

    def _serve(self, number: int) -> None:
        while True:
            job = self._jobs.get()
            with self._lock:
                if job.finished:
                    continue
                job.started = time.monotonic()
            result, error = None, None
            try:
                result = job.call()
            except BaseException as raised:  # noqa: BLE001 - it goes to the caller that waits for it
                error = raised
            with self._lock:
                job.finished = True
                if not job.future.done():
                    if error is None:
                        job.future.set_result(result)
                    else:
                        job.future.set_exception(error)
                if number != self._current:
                    # A thread is replaced only while it runs a call, so this is where it finds out.
                    if not self._hung:
                        self._abandoned -= 1
                        return
                    # The newest hangs too: this one takes its place.
                    self._current = number
                self._hung = False
            del job, result, error
