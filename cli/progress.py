"""Shows on standard error that a long command goes on: at a terminal only, and gone when it ends."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

FIRST_AFTER_S = 1.0
"""What ends sooner shows nothing."""
_ERASE = "\r\x1b[K"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Counts the seconds of the block, in a line that says what it waits for."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    began = time.monotonic()

    def count() -> None:
        shown = False
        while not done.wait(FIRST_AFTER_S):
            shown = True
            sys.stderr.write(f"{_ERASE}{what} ... {time.monotonic() - began:.0f} s")
            sys.stderr.flush()
        if shown:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Steps:
    """Shows how far a command has come.

    Args:
        what: it counts.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._on = sys.stderr.isatty() and not sys.stdout.isatty()
        self._next = time.monotonic() + FIRST_AFTER_S
        self._shown = False

    def at(self, done: int, end: int) -> None:
        """Shows it, at most once a second. Records at the terminal show by themselves that it goes on."""
        if self._on and time.monotonic() >= self._next:
            self._next = time.monotonic() + FIRST_AFTER_S
            self._shown = True
            sys.stderr.write(f"{_ERASE}{self._what}: {done} of {end}")
            sys.stderr.flush()

    def end(self) -> None:
        """Takes it away."""
        if self._shown:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
