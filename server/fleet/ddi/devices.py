"""Adds and lists devices that speak hawkBit's DDI."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, NotFound
from server.fleet.devices.registry import DDI
from server.registry import audit
from server.registry.models.ddi import DdiDevice
from server.registry.models.fleets import Device, DeviceSeen

ACTIVE, BLOCKED = "active", "blocked"


@dataclass(frozen=True, slots=True)
class DdiRow:
    """A device as operators see it. Times are seconds since 1970 UTC."""

    device_id: str
    name: str
    state: str
    created_at: int
    configured_at: int | None
    seen_at: int | None
    auto_confirm: bool


def add(session: Session, device_id: str, name: str, now: int, hardware: str | None = None, zone: str | None = None) -> None:
    """Adds a device, without anything that it could identify itself with.

    Args:
        session: of a writing transaction.
        device_id: of the device; it is part of the paths that it asks.
        name: for people; may be empty.
        now: seconds since 1970 UTC.
        hardware: the kind of machine that it is; None if packages of any kind may be ordered.
        zone: its IANA time zone; None if it is not known.

    Raises:
        Conflict: there is a device of that id, an agent perhaps.
    """
    if session.get(Device, device_id) is not None:
        raise Conflict(f"there is a device {device_id!r} already: choose another id, or give that device a token")
    session.add(
        Device(id=device_id, kind=DDI, name=name, hardware=hardware, zone=zone, site_id=None, created_at=now, updated_at=now,
               revision=1)
    )  # fmt: skip
    session.add(DdiDevice(device_id=device_id, configured_at=None, auto_confirm=None, created_at=now, updated_at=now))
    audit.record(session, "admin", "ddi.added", "ok", now, device=device_id)


def required(session: Session, device_id: str, *, lock: bool = False) -> DdiDevice:
    """A device that speaks DDI. Raises NotFound."""
    found = session.get(DdiDevice, device_id, with_for_update=lock)
    if found is None:
        raise NotFound(f"there is no device {device_id!r} that speaks DDI; 'license-server ddi devices list' has their ids")
    return found


def listed(session: Session, after: str, limit: int) -> list[DdiRow]:
    """Devices in the order of their ids.

    Args:
        session: of a transaction.
        after: the id behind which the list begins; empty for its beginning.
        limit: rows at most.
    """
    rows = session.execute(
        select(DdiDevice, Device.name, Device.blocked_at, DeviceSeen.at)
        .join(Device, Device.id == DdiDevice.device_id)
        .outerjoin(DeviceSeen, DeviceSeen.device_id == DdiDevice.device_id)
        .where(DdiDevice.device_id > after)
        .order_by(DdiDevice.device_id)
        .limit(limit)
    )
    return [
        DdiRow(
            each.device_id,
            name,
            ACTIVE if blocked is None else BLOCKED,
            each.created_at,
            each.configured_at,
            seen,
            each.auto_confirm is not None,
        )
        for each, name, blocked, seen in rows
    ]
