"""The time that verdicts use: the wall clock, but never before a time that has certainly passed.

The floor is the latest time that the server has signed for this agent. A clock behind it beyond the tolerance is
suspect; expiry is then judged by the floor, and nothing valid is refused for it.
"""

import time
from collections.abc import Callable

TOLERANCE_S = 300


class Clock:
    """Wall and monotonic time for the whole daemon.

    Args:
        wall: seconds since 1970 UTC.
        monotonic: seconds that never go back.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.wall = wall
        self.monotonic = monotonic
        self._floor = 0

    @property
    def floor(self) -> int:
        """The latest server-signed time."""
        return self._floor

    def raise_floor(self, signed_time: int) -> None:
        """Takes over a server-signed time; an earlier one changes nothing."""
        self._floor = max(self._floor, signed_time)

    def now(self) -> int:
        """Whole seconds for verdicts."""
        return max(int(self.wall()), self._floor)

    def suspect(self) -> bool:
        """Whether the wall clock stands behind the floor by more than the tolerance."""
        return self.wall() + TOLERANCE_S < self._floor
