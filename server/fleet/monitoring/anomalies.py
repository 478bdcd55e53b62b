"""Finds what is unusual for a fleet: a value far away from its own at the same time of the week in the weeks before. Pure.

The method, which docs/guides/fleet-health.md explains for operators:

1. Samples are the values of windows of the same length, at the same local time of the same weekday, in each of the `WEEKS`
   weeks before; of each week also the window before and the one behind. Behind a DST change, the same local time is another
   time of UTC.
2. The usual value is their median, and the usual spread their MAD (median of the distances to the median) times 1.4826, which
   is the standard deviation of a normal distribution. Both ignore a minority of samples, as those of one bad week.
3. The spread is never less than what chance alone explains (for a share p of n contacts, the root of p(1-p)/n; for a count,
   its root), nor less than a floor for each quantity.
4. A value is unusual if its distance to the median is more than `sensitivity` spreads, in the direction that matters.

It says nothing with fewer than `LEAST_WEEKS` weeks of samples, or where fewer contacts than `min_contacts` were observed or
were usual. A change that comes slower than the weeks that are compared is not unusual: thresholds are for that.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from statistics import median

from .series import Series, Window, window

WEEKS = 8
LEAST_WEEKS = 3
LEAST_SHARE = 0.5
"""Of a window's intervals, how many must have been observed."""
_NORMAL = 1.4826


@dataclass(frozen=True, slots=True)
class Usual:
    """What is usual at a time of the week.

    Attributes:
        value: the median of the samples.
        spread: the usual distance to it.
        weeks: number of weeks that have samples.
    """

    value: float
    spread: float
    weeks: int


def times(at: int, zone: tzinfo, width_s: int, step_s: int) -> list[list[int]]:
    """When the windows end that a window is compared with, for each week before: seconds since 1970 UTC, whole steps.

    Args:
        at: when that window's last interval begins.
        zone: of the fleet.
        width_s: the length of the windows.
        step_s: the length of an interval.
    """
    there = datetime.fromtimestamp(at, UTC).astimezone(zone).replace(tzinfo=None)
    found = []
    for week in range(1, WEEKS + 1):
        # Wall time minus whole weeks. A time that a DST change leaves out or repeats counts as the first of the two.
        then = (there - timedelta(weeks=week)).replace(tzinfo=zone).timestamp()
        middle = int(then) // step_s * step_s
        found.append([middle - width_s, middle, middle + width_s])
    return found


def past(series: Series, at: int, zone: tzinfo, width: int, step_s: int) -> list[list[Window]]:
    """The windows to compare with, for each week: those of which enough was observed.

    Args:
        series: the fleet's.
        at: when the last interval of the present window begins.
        zone: of the fleet.
        width: intervals of a window.
        step_s: the length of an interval.
    """
    weeks = ([window(series, each, width, step_s) for each in week] for week in times(at, zone, width * step_s, step_s))
    return [[each for each in week if each.observed >= max(1, LEAST_SHARE * width)] for week in weeks]


def samples(weeks: Sequence[Sequence[Window]], value: Callable[[Window], float | None]) -> list[list[float]]:
    """The values of windows, for each week that has any.

    Args:
        weeks: the windows of each.
        value: of a window; None if it says nothing.
    """
    found = [[each for each in map(value, week) if each is not None] for week in weeks]
    return [week for week in found if week]


def usual(weeks: Sequence[Sequence[float]], floor: float, chance: Callable[[float], float]) -> Usual | None:
    """What is usual by some samples; None if there are too few weeks.

    Args:
        weeks: samples of each week.
        floor: the least spread.
        chance: the spread that chance alone explains around a value.
    """
    if len(weeks) < LEAST_WEEKS:
        return None
    every = [value for week in weeks for value in week]
    middle = median(every)
    mad = median(abs(value - middle) for value in every)
    return Usual(middle, max(_NORMAL * mad, floor, chance(middle)), len(weeks))


def distance(value: float, known: Usual) -> float:
    """How many spreads a value is above the usual one; less than 0 below it."""
    return (value - known.value) / known.spread


def chance_of_share(count: int) -> Callable[[float], float]:
    """The spread of a share of so many by chance, around a share. A share of 0 counts as one in all of them and one more."""

    def spread(share: float) -> float:
        likely = min(max(share, 1 / (count + 1)), 1.0)
        return math.sqrt(likely * (1 - likely) / count) if count else 1.0

    return spread


def chance_of_count(count: float) -> float:
    """The spread of a count by chance, around it."""
    return math.sqrt(max(count, 1.0))
