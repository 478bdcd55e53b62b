"""Decides which devices belong to a fleet: its static members, and those that its selection selects."""

from collections.abc import Sequence

from sqlalchemy import Select, select, union
from sqlalchemy.orm import Session

from server.fleet.devices.facts import facts_of, holds
from server.fleet.devices.selection import matches, parse, selecting
from server.registry.models.fleets import Device, Fleet, FleetMember


def members(session: Session, fleet: Fleet) -> Select[str]:
    """The query for the ids of a fleet's devices, each once, in no order.

    Args:
        session: of any transaction.
        fleet: the fleet.

    Raises:
        Conflict: as `selecting`.
    """
    session.flush()
    static = select(FleetMember.device_id).where(FleetMember.fleet_id == fleet.id)
    if fleet.selection is None:
        return static
    return select(Device.id).where(Device.id.in_(union(static, selecting(session, parse(fleet.selection)))))


def is_member(session: Session, fleet: Fleet, device_id: str) -> bool:
    """Whether a device belongs to a fleet: by lookups of the device's rows."""
    if session.get(FleetMember, (fleet.id, device_id)) is not None:
        return True
    return fleet.selection is not None and matches(session, parse(fleet.selection), device_id)


def among(session: Session, fleet: Fleet, device_ids: Sequence[str]) -> set[str]:
    """Which of some devices belong to a fleet: by lookups of those devices' rows, however large the fleet is.

    Args:
        session: of any transaction.
        fleet: the fleet.
        device_ids: the devices; a bounded number.

    Raises:
        Conflict: as `selecting`.
    """
    static = select(FleetMember.device_id).where(FleetMember.fleet_id == fleet.id, FleetMember.device_id.in_(device_ids))
    found = set(session.scalars(static))
    if fleet.selection is not None:
        found.update(session.scalars(selecting(session, parse(fleet.selection)).where(Device.id.in_(device_ids))))
    return found


def fleets_of(session: Session, device_id: str) -> list[Fleet]:
    """The fleets that a device belongs to, in the order of their rank: the first one configures it.

    Reads all fleets, of which there are `registry.MAX_FLEETS` at most, and what is known of the device once.
    """
    session.flush()
    fleets = list(session.scalars(select(Fleet).order_by(Fleet.rank)))
    static = set(session.scalars(select(FleetMember.fleet_id).where(FleetMember.device_id == device_id)))
    selections = {fleet.id: parse(fleet.selection) for fleet in fleets if fleet.selection is not None}
    facts = facts_of(session, device_id, selections.values())
    if facts is None:
        return []
    found = (fleet.id in static or (fleet.id in selections and holds(selections[fleet.id].root, facts)) for fleet in fleets)
    return [fleet for fleet, belongs in zip(fleets, found, strict=True) if belongs]
