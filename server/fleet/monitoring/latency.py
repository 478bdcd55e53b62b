"""Counts latencies in few buckets, so that counts of several processes and intervals can be added. Pure."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
"""Upper bounds of the buckets, in seconds; one more bucket has what is longer. Close around the thresholds."""
NONE = (0,) * (len(BOUNDS) + 1)
"""Counts of nothing."""


def bucket_of(seconds: float) -> int:
    """The bucket of a latency."""
    return bisect_left(BOUNDS, seconds)


def added(parts: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The sum of counts."""
    total = list(NONE)
    for part in parts:
        for number, count in enumerate(part):
            total[number] += count
    return tuple(total)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """About how many seconds that share of all latencies is at most; None without any.

    Within a bucket they count as spread evenly, so the error is at most the width of the bucket. What is longer than the last
    bound counts as that bound.

    Args:
        counts: for each bucket.
        share: from 0 to 1; 0.95 for the 95th percentile.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, below, lower = share * total, 0, 0.0
    for count, upper in zip(counts, BOUNDS, strict=False):
        if count and below + count >= wanted:
            return lower + (upper - lower) * max(wanted - below, 0.0) / count
        below, lower = below + count, upper
    return BOUNDS[-1]


def text_of(counts: Sequence[int]) -> str:
    """How counts are stored."""
    return ",".join(map(str, counts))


def counts_of(text: str) -> tuple[int, ...]:
    """Counts that were stored; those of a release with other buckets count as none."""
    parts = text.split(",")
    if len(parts) != len(NONE) or not all(part.isascii() and part.isdigit() for part in parts):
        return NONE
    return tuple(map(int, parts))
