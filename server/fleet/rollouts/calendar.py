"""Says when a deployment window is open, for what the server itself has to say: an agent judges its own window. Pure."""

import zoneinfo
from datetime import UTC, time

from common.openings import Calendar, Window
from contracts.directive import Day, DeploymentWindow

_DAYS = tuple(Day)


def open_at(window: DeploymentWindow | None, now: int) -> bool:
    """Whether an installation may begin now, which is in seconds since 1970 UTC; always, where there is no window."""
    return _calendar(window).open_at(now)


def next_opening(window: DeploymentWindow | None, now: int) -> int:
    """When an installation may begin, seconds since 1970 UTC: now, if the window is open."""
    found = _calendar(window).next_change(now, to_open=True)
    return now if found is None else found


def _calendar(window: DeploymentWindow | None) -> Calendar:
    if window is None:
        return Calendar()
    days = frozenset(_DAYS.index(day) for day in window.days)
    opens = Window(zoneinfo.ZoneInfo(window.zone), days, time.fromisoformat(window.start), time.fromisoformat(window.end))
    return Calendar(UTC, opens)
