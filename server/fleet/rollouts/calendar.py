"""Says when a deployment window is open, for what the server itself has to say: an agent judges its own window. Pure."""

import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta

from contracts.directive import Day, DeploymentWindow

_DAYS = tuple(Day)


def open_at(window: DeploymentWindow | None, now: int) -> bool:
    """Whether an installation may begin now, which is in seconds since 1970 UTC; always, where there is no window."""
    return window is None or any(begin <= now < end for begin, end in _around(window, now))


def next_opening(window: DeploymentWindow | None, now: int) -> int:
    """When an installation may begin, seconds since 1970 UTC: now, if the window is open."""
    if window is None:
        return now
    return min(max(begin, now) for begin, end in _around(window, now) if end > now)


def _around(window: DeploymentWindow, now: int) -> Iterator[tuple[int, int]]:
    """The openings from yesterday until in eight days."""
    zone = zoneinfo.ZoneInfo(window.zone)
    today = datetime.fromtimestamp(now, UTC).astimezone(zone).date()
    start, end = time.fromisoformat(window.start), time.fromisoformat(window.end)
    for number in range(-1, 9):
        day = today + timedelta(days=number)
        if _DAYS[day.weekday()] in window.days:
            last = day if end > start else day + timedelta(days=1)
            yield tuple(int(datetime.combine(*each, zone).timestamp()) for each in ((day, start), (last, end)))  # type: ignore[misc]
