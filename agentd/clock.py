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

    Attributes:
        floor: the latest server-signed time; `raise_floor` sets it.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.wall = wall
        self.monotonic = monotonic
        self.floor = 0

    def raise_floor(self, signed_time: int) -> None:
        """Takes over a server-signed time; an earlier one changes nothing."""
        self.floor = max(self.floor, signed_time)

    def now(self) -> int:
        """Whole seconds for verdicts."""
        return max(int(self.wall()), self.floor)

    def suspect(self) -> bool:
        """Whether the wall clock stands behind the floor by more than the tolerance."""
        return self.wall() + TOLERANCE_S < self.floor
