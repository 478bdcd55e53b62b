"""Token buckets, one a key. Nothing here performs IO."""

from collections.abc import Hashable


class Buckets:
    """A rate limit for each key.

    Args:
        rate: tokens that come back each second.
        burst: tokens that a full bucket holds.

    Attributes:
        levels: what each bucket held, and when; a key that is not there has a full one.
    """

    __slots__ = ("burst", "levels", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.levels: dict[Hashable, tuple[float, float]] = {}

    def take(self, key: Hashable, now: float) -> bool:
        """Takes a token; False if there is none.

        Args:
            key: whose bucket.
            now: monotonic seconds.
        """
        known = self.levels.get(key)
        level = self.burst if known is None else known[0] + (now - known[1]) * self.rate
        if level > self.burst:
            level = self.burst
        if level < 1.0:
            self.levels[key] = (level, now)
            return False
        self.levels[key] = (level - 1.0, now)
        return True

    def forget_full(self, now: float) -> None:
        """Drops buckets that have filled up again."""
        full = [key for key, (level, then) in self.levels.items() if level + (now - then) * self.rate >= self.burst]
        for key in full:
            del self.levels[key]
