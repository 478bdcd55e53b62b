"""Waits until something is ready. READY_S bounds a wait that would never end: no verdict depends on the machine's speed.

A wait costs nothing while all is well, so there is one bound for all of them, far above what a machine under load needs.
"""

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

READY_S = 300.0
PAUSE_S = 0.02

_Found = TypeVar("_Found")


def wait_until(
    condition: Callable[[], _Found],
    what: str | Callable[[], str],
    *,
    lives: Callable[[], bool] = lambda: True,
    pause_s: float = PAUSE_S,
) -> _Found:
    """Asks until the answer is true and returns it.

    Args:
        condition: what is asked.
        what: the text of the failure, or makes it.
        lives: False as soon as it is in vain to ask again, such as for a process that has ended.
        pause_s: seconds between two questions.

    Raises:
        AssertionError: READY_S have passed, or it is in vain.
    """
    ends = time.monotonic() + READY_S
    while True:
        hope = lives() and time.monotonic() < ends  # before the question: what was true at the end counts
        if found := condition():
            return found
        if not hope:
            raise AssertionError(what if isinstance(what, str) else what())
        time.sleep(pause_s)


def wait_for_file(path: Path, process: "subprocess.Popen[str]", what: str) -> None:
    """Returns when the file exists.

    Raises:
        AssertionError: the process that is to make it has ended, or READY_S have passed; with what it printed.
    """
    try:
        wait_until(path.exists, what, lives=lambda: process.poll() is None)
    except AssertionError:
        process.terminate()
        raise AssertionError(f"{what}: {process.communicate(timeout=READY_S)[0]}") from None


def answers(port: int) -> bool:
    """Whether something listens on that port of loopback."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), READY_S):
        return True
    return False
