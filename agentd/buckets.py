"""Token buckets, one a key. Nothing here performs IO."""

from collections.abc import Hashable


class Buckets:
    """A rate limit for each key.

    Args:
        rate: tokens that come back each second.
        burst: tokens that a full bucket holds.
    """

    __slots__ = ("_levels", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._levels: dict[Hashable, tuple[float, float]] = {}

    def take(self, key: Hashable, now: float) -> bool:
        """Takes a token; False if there is none.

        Args:
            key: whose bucket.
            now: monotonic seconds.
        """
        level, then = self._levels.get(key, (self.burst, now))
        level = min(self.burst, level + (now - then) * self.rate)
        if level < 1.0:
            self._levels[key] = (level, now)
            return False
        self._levels[key] = (level - 1.0, now)
        return True

    def forget_full(self, now: float) -> None:
        """Drops buckets that have filled up again."""
        full = [key for key, (level, then) in self._levels.items() if level + (now - then) * self.rate >= self.burst]
        for key in full:
            del self._levels[key]
