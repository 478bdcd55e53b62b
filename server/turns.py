"""One at a time for each name: a request that comes twice at once waits for its twin. Locks, no other IO."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A lock for each name that is in use at the moment."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Holds the name's lock; whoever comes second waits."""
        with self._guard:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks[name]
                if users == 1:
                    del self._locks[name]
                else:
                    self._locks[name] = (lock, users - 1)
