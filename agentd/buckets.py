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
        known = self._levels.get(key)
        level = self.burst if known is None else known[0] + (now - known[1]) * self.rate
        if level > self.burst:
            level = self.burst
        if level < 1.0:
            self._levels[key] = (level, now)
            return False
        self._levels[key] = (level - 1.0, now)
        return True

    def has(self, key: Hashable, now: float) -> bool:
        """Whether `take` would give a token; takes none."""
        known = self._levels.get(key)
        return known is None or known[0] + (now - known[1]) * self.rate >= 1.0

    def forget_full(self, now: float) -> None:
        """Drops buckets that have filled up again."""
        full = [key for key, (level, then) in self._levels.items() if level + (now - then) * self.rate >= self.burst]
        for key in full:
            del self._levels[key]
