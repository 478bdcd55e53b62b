"""Limits how often each of many callers may do something, with a token bucket for each. Nothing here performs IO."""

import math
from collections.abc import Hashable


class Buckets:
    """A token bucket for each key. The user calls `forget_full` now and then, to bound its memory.

    Args:
        rate: tokens that come back each second.
        burst: tokens that a full bucket holds; at least 1.

    Attributes:
        levels: what each bucket held, and when; a key that is not in it has a full bucket.
    """

    __slots__ = ("burst", "levels", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.levels: dict[Hashable, tuple[float, float]] = {}

    def take(self, key: Hashable, now: float) -> bool:
        """Takes a token; False if the bucket holds none.

        Args:
            key: whose bucket.
            now: seconds of a clock that never goes back.
        """
        # Written out in `wait` and `forget_full` once more: this one is called for every validation.
        known = self.levels.get(key)
        level = self.burst if known is None else known[0] + (now - known[1]) * self.rate
        if level > self.burst:
            level = self.burst
        if level < 1.0:
            self.levels[key] = (level, now)
            return False
        self.levels[key] = (level - 1.0, now)
        return True

    def give(self, key: Hashable, tokens: float, now: float) -> None:
        """Puts tokens into a bucket, as many as it can hold."""
        level, then = self.levels.get(key, (self.burst, now))
        self.levels[key] = (min(self.burst, level + (now - then) * self.rate + tokens), now)

    def wait(self, key: Hashable, now: float) -> int:
        """Whole seconds until `take` will succeed, rounded up; 0 if it would now. Takes nothing."""
        level, then = self.levels.get(key, (self.burst, now))
        missing = 1.0 - min(self.burst, level + (now - then) * self.rate)
        return math.ceil(missing / self.rate) if missing > 0 else 0

    def forget_full(self, now: float) -> None:
        """Drops the buckets that have filled up again."""
        full = [key for key, (level, then) in self.levels.items() if level + (now - then) * self.rate >= self.burst]
        for key in full:
            del self.levels[key]


class BoundedBuckets(Buckets):
    """As `Buckets`, for callers without number: it needs no `forget_full`.

    Args:
        rate: tokens that come back each second.
        burst: tokens that a full bucket holds; at least 1.
        most: buckets that are kept. Beyond that, the one whose last token was taken longest ago is forgotten.
    """

    __slots__ = ("most",)

    def __init__(self, rate: float, burst: float, most: int) -> None:
        super().__init__(rate, burst)
        self.most = most

    def take(self, key: Hashable, now: float) -> bool:
        """As `Buckets.take`."""
        if not super().take(key, now):
            return False
        self.levels[key] = self.levels.pop(key)  # a dict keeps its order: the last one is the one of now
        if len(self.levels) > self.most:
            del self.levels[next(iter(self.levels))]
        return True
