"""Says whether a deployment window is open: agents keep their windows themselves, clients of DDI do not know any. Pure."""

import zoneinfo
from datetime import UTC, datetime, tzinfo

from contracts.directive import Day, DeploymentWindow

_DAYS = tuple(Day)


def is_open(window: DeploymentWindow | None, now: int) -> bool:
    """Whether an installation may begin at a time, in seconds since 1970 UTC. Without a window it always may."""
    if window is None:
        return True
    local = datetime.fromtimestamp(now, _zone(window.zone))
    today, clock = local.weekday(), f"{local:%H:%M}"
    if window.start < window.end:
        return _DAYS[today] in window.days and window.start <= clock < window.end
    # It closes on the day after.
    opened_today = _DAYS[today] in window.days and clock >= window.start
    return opened_today or (_DAYS[today - 1] in window.days and clock < window.end)


def _zone(name: str) -> tzinfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return UTC  # as where a device's zone is not known
