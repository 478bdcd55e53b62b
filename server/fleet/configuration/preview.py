"""Says when the agents of a fleet may install updates in the next days, as far as the fleet's configuration says. Pure but for
the zones of devices, and the files of time zones.
"""

from dataclasses import dataclass
from datetime import UTC, time

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from common.openings import DAYS, Calendar, Frozen, Opening, Window, openings
from common.zones import UnknownZone, zone_of
from contracts.contact.configuration import Members, frozen_range
from server.fleet.fleets.membership import members
from server.registry.models.fleets import Device, Fleet

MAX_ZONES = 20
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class DeviceZone:
    """A time zone of devices of a fleet.

    Attributes:
        zone: its name; empty for devices whose zone nobody has given.
        devices: how many.
        problem: why times cannot be shown in it; empty if they can.
    """

    zone: str
    devices: int
    problem: str


@dataclass(frozen=True, slots=True)
class Preview:
    """When a fleet's agents may install.

    Attributes:
        zone: of the fleet's window; UTC without one.
        window: whether the configuration has a window; without one any time will do, but for frozen days.
        openings: in the days asked for. A directive's own window and notice narrow them, and so may a machine's own file.
        zones: the time zones of the fleet's devices, at most `MAX_ZONES`, those of most devices first.
    """

    zone: str
    window: bool
    openings: tuple[Opening, ...]
    zones: tuple[DeviceZone, ...]


def calendar_of(set_: Members) -> Calendar:
    """The calendar that a configuration makes.

    Raises:
        UnknownZone: this machine does not know the window's time zone.
    """
    frozen = () if set_.updates_freeze is msgspec.UNSET else tuple(Frozen(*frozen_range(each)) for each in set_.updates_freeze)
    window = set_.updates_window
    if window is msgspec.UNSET:
        return Calendar(UTC, None, frozen)
    zone = zone_of(window.zone)
    days = frozenset(DAYS.index(day.value) for day in window.days)
    return Calendar(zone, Window(zone, days, time.fromisoformat(window.start), time.fromisoformat(window.end)), frozen)


def preview(set_: Members, zones: tuple[DeviceZone, ...], now: int, days: int) -> Preview:
    """When installations may begin.

    Args:
        set_: the fleet's configuration.
        zones: of the fleet's devices.
        now: seconds since 1970 UTC.
        days: how far ahead.

    Raises:
        UnknownZone: as `calendar_of`.
    """
    calendar = calendar_of(set_)
    window = calendar.window
    found = openings((calendar,), now, now + days * DAY_S)
    return Preview("UTC" if window is None else window.zone.key, window is not None, found, zones)


def zones_of(session: Session, fleet: Fleet) -> tuple[DeviceZone, ...]:
    """The time zones of a fleet's devices. One that this machine does not know has a problem."""
    count = func.count()
    query = (
        select(Device.zone, count)
        .where(Device.id.in_(members(session, fleet)))
        .group_by(Device.zone)
        .order_by(count.desc(), Device.zone)
        .limit(MAX_ZONES)
    )
    return tuple(DeviceZone(zone or "", number, _problem(zone or "")) for zone, number in session.execute(query))


def _problem(zone: str) -> str:
    if not zone:
        return "no time zone is known of these devices"
    try:
        zone_of(zone)
    except UnknownZone as error:
        return f"the zone of these devices {error}"
    return ""
