"""Says whether the window of an offer is open, also in a time zone that this machine does not know. Pure."""

import zoneinfo

import msgspec

from contracts.directive import DeploymentWindow
from server.fleet.rollouts.calendar import open_at


def is_open(window: DeploymentWindow | None, now: int) -> bool:
    """Whether an installation may begin at a time, in seconds since 1970 UTC. Without a window it always may."""
    try:
        return open_at(window, now)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        # As for a device that has not said its zone: the window is one of UTC.
        return window is None or open_at(msgspec.structs.replace(window, zone="UTC"), now)
