"""Work that goes on beside a test."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from tests.support.waiting import READY_S


@contextlib.contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Does it beside the block; what fails in it fails the test."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(READY_S)
    assert not failed, failed
