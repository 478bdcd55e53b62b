"""One thread owns the hardware; others ask it and wait no longer than their deadline.

A call into a TPM library cannot be cancelled. So the thread is a daemon thread: past its deadline it is abandoned, with its
connection, and replaced, `REPLACEMENTS` times at the most; a stop of the process never joins it.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .errors import BackendHung

T = TypeVar("T")
REPLACEMENTS = 2


class HardwareOwner:
    """Runs calls one after another on a thread of their own."""

    def __init__(self, name: str = "hardware") -> None:
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._replaced = 0
        self._hung = False
        self._start()

    def _start(self) -> None:
        threading.Thread(target=_serve, args=(self._queue,), name=self._name, daemon=True).start()

    async def run(self, call: Callable[[], T], deadline: float) -> T:
        """Runs `call` on the owner thread and returns what it returns.

        Args:
            call: does its work without regard to the event loop.
            deadline: seconds until the caller gives up.

        Raises:
            BackendHung: `call` was not done in time.
            Exception: what `call` raised.
        """
        if self._hung:
            raise BackendHung("the hardware has stopped answering; restart the agent, and the machine if that does not help")
        future: Future[T] = Future()
        self._queue.put((call, future))
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), deadline)
        except TimeoutError:
            if future.done():
                raise
            self._replace()
            raise BackendHung(f"the hardware did not answer within {deadline:g} s") from None

    def _replace(self) -> None:
        if self._replaced >= REPLACEMENTS:
            self._hung = True
            return
        self._replaced += 1
        self._queue = queue.SimpleQueue()
        self._start()

    @property
    def hung(self) -> bool:
        """Whether all replacements are used up."""
        return self._hung


def _serve(calls: "queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]") -> None:
    while True:
        call, future = calls.get()
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - it is handed to whoever waits for it
            future.set_exception(error)
        else:
            future.set_result(result)
        del call, future
