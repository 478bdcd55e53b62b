"""Decides when a calendar of windows and frozen days is open, and lists when it will be. Pure.

A window is open while the clock on the shop's wall reads a time within it: from `start` to before `end`, the next day where
`end` is not later than `start`; `days` names the day on which it opens. So in the night in which clocks go forward a window
that lies wholly in the missing hour does not open, and in the night in which they go back one that lies in the repeated hour
opens twice. A frozen day is a day of the wall clock too, from midnight to midnight; it shuts the part of a window that began
the evening before.
"""

import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
HORIZON_DAYS = 400
"""How far `next_change` looks: beyond a year's calendar of frozen days."""

_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Window:
    """When an installation may begin.

    Attributes:
        zone: of the wall clock.
        days: days of the week on which it opens, from 0 for Monday.
        start, end: of the wall clock, to the minute; not equal.
    """

    zone: zoneinfo.ZoneInfo
    days: frozenset[int]
    start: time
    end: time

    def __str__(self) -> str:
        days = ", ".join(DAYS[day] for day in sorted(self.days)) if len(self.days) < 7 else "every day"
        return f"{self.start:%H:%M} to {self.end:%H:%M} {self.zone.key} {days}"

    def holds(self, wall: datetime) -> bool:
        """Whether a reading of the wall clock is within the window."""
        now, day = wall.time().replace(tzinfo=None), wall.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= now < self.end
        return (day in self.days and now >= self.start) or ((day - 1) % 7 in self.days and now < self.end)


@dataclass(frozen=True, slots=True)
class Frozen:
    """Days on which no installation may begin, both included."""

    first: date
    last: date


@dataclass(frozen=True, slots=True)
class Calendar:
    """When installations may begin on this machine.

    Attributes:
        zone: of frozen days.
        window: None if any time of the day will do.
        frozen: days on which none may begin.
    """

    zone: tzinfo = UTC
    window: Window | None = None
    frozen: tuple[Frozen, ...] = ()

    def frozen_at(self, at: float) -> bool:
        """Whether it is a frozen day."""
        return self._frozen(datetime.fromtimestamp(at, self.zone).date())

    def open_at(self, at: float) -> bool:
        """Whether an installation may begin.

        Args:
            at: seconds since 1970 UTC.
        """
        if self.frozen_at(at):
            return False
        return self.window is None or self.window.holds(datetime.fromtimestamp(at, self.window.zone))

    def _frozen(self, day: date) -> bool:
        return any(each.first <= day <= each.last for each in self.frozen)

    def next_change(self, at: float, *, to_open: bool) -> int | None:
        """When it is open next, or closed next: `at` itself if it is so already.

        Args:
            at: seconds since 1970 UTC.
            to_open: whether the opening is looked for, or the closing.

        Returns:
            Seconds since 1970 UTC; None if it does not happen within `HORIZON_DAYS`.
        """
        if self.open_at(at) is to_open:
            return int(at)
        first = datetime.fromtimestamp(at, self.zone).date() - timedelta(days=1)
        for number in range(HORIZON_DAYS):
            found = [
                when for when in self._boundaries(first + timedelta(days=number)) if when > at and self.open_at(when) is to_open
            ]
            if found:
                return int(min(found))
        return None

    def _boundaries(self, day: date) -> Iterator[float]:
        """Every instant of a day and the night after it at which the answer can change: it cannot between two of them."""
        yield from _instants(datetime.combine(day, time()), self.zone)
        yield from _shifts(day, self.zone)
        if self.window is not None:
            for clock in (self.window.start, self.window.end):
                yield from _instants(datetime.combine(day, clock), self.window.zone)
            yield from _shifts(day, self.window.zone)


def _instants(wall: datetime, zone: tzinfo) -> Iterator[float]:
    """The instants at which the wall clock reads this: one, two where clocks go back; two that are near where it never does."""
    yield wall.replace(tzinfo=zone, fold=0).timestamp()
    yield wall.replace(tzinfo=zone, fold=1).timestamp()


def _shifts(day: date, zone: tzinfo) -> Iterator[float]:
    """The instant of this day at which the zone's offset changes, if it does: the clock on the wall jumps there."""
    low = datetime.combine(day, time(), UTC)
    high = low + timedelta(days=1)
    if low.astimezone(zone).utcoffset() == high.astimezone(zone).utcoffset():
        return
    while high - low > _MINUTE:
        middle = (low + (high - low) / 2).replace(second=0, microsecond=0)
        if middle in (low, high):
            break
        if middle.astimezone(zone).utcoffset() == low.astimezone(zone).utcoffset():
            low = middle
        else:
            high = middle
    yield high.timestamp()


def next_opening(calendars: tuple[Calendar, ...], now: int) -> int | None:
    """When all are open, seconds since 1970 UTC; None if that is not within the horizon."""
    at: int | None = now
    for _ in range(HORIZON_DAYS):
        for each in calendars:
            if at is None:
                return None
            at = each.next_change(at, to_open=True)
        if at is None or all(each.open_at(at) for each in calendars):
            return at
    return None


@dataclass(frozen=True, slots=True)
class Opening:
    """A time in which installations may begin. Times are seconds since 1970 UTC.

    Attributes:
        opens: its first second; the asked time itself if it is open then.
        closes: the first second behind it; None if it does not close within `HORIZON_DAYS`.
    """

    opens: int
    closes: int | None


MOST_OPENINGS = 500


def openings(calendars: tuple[Calendar, ...], at: int, until: int) -> tuple[Opening, ...]:
    """When all calendars are open, in order; at most `MOST_OPENINGS`.

    Args:
        calendars: that all must be open.
        at: seconds since 1970 UTC.
        until: openings that begin at or after it are left out.
    """
    found: list[Opening] = []
    begin: int | None = at
    while begin is not None and len(found) < MOST_OPENINGS:
        opens = next_opening(calendars, begin)
        if opens is None or opens >= until:
            break
        ends = [each.next_change(opens, to_open=False) for each in calendars]
        closes = min((end for end in ends if end is not None), default=None)
        found.append(Opening(opens, closes))
        begin = closes
    return tuple(found)
