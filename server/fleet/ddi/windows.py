"""Says whether the window of an offer is open. In a time zone that this machine does not know, it stays shut."""

import functools
import logging
import zoneinfo

from contracts.directive import DeploymentWindow
from server.fleet.rollouts.calendar import open_at

_log = logging.getLogger("license_server")


def is_open(window: DeploymentWindow | None, now: int) -> bool:
    """Whether an installation may begin at a time, in seconds since 1970 UTC. Without a window it always may."""
    try:
        return open_at(window, now)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        if window is not None:
            _tell(window.zone)
        # The hours of another zone may be the middle of this shop's day.
        return False


@functools.lru_cache(maxsize=256)
def _tell(zone: str) -> None:
    """Logs a zone once in a run, and not at each poll of each device."""
    text = "devices are offered nothing: this machine does not know their time zone; install tzdata, or change the zone"
    _log.error(text, extra={"fields": {"zone": zone}})
