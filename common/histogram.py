"""Counts how long things took, in buckets, as Prometheus' histograms do. Pure, and cheap enough for every request."""

from bisect import bisect_left
from collections.abc import Iterator


class Histogram:
    """Durations by their upper bounds.

    Args:
        bounds: of the buckets, in seconds, growing; what is longer than the last is counted beyond it.

    Attributes:
        counts: for each bucket, and last beyond all.
        sum: of all durations, in seconds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (self.bounds, self.counts, self.sum) == (other.bounds, other.counts, other.sum)

    __hash__ = None  # type: ignore[assignment]

    def observe(self, seconds: float) -> None:
        """Counts one duration. A clock never goes back here, so a negative one is zero."""
        seconds = max(seconds, 0.0)
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Each bucket's bound as `le` has it, and how many were not longer."""
        total = 0
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            yield bound, total
