"""Acts that begin at the same moment."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tests.support.waiting import READY_S

T = TypeVar("T")


def at_once(acts: list[Callable[[], T]]) -> list[T]:
    """Results of acts that begin at the same moment, each in a thread."""
    barrier = threading.Barrier(len(acts))

    def run(act: Callable[[], T]) -> T:
        barrier.wait(READY_S)
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts, timeout=READY_S))
