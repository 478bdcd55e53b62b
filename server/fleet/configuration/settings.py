"""Keeps the configurations of fleets. Each change makes the next number; what a number says never changes."""

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from common.plain import msgspec_text
from common.zones import UnknownZone, zone_of
from contracts.contact.configuration import NAMES, Members, values_of
from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.fleets.fleets import required
from server.fleet.fleets.membership import fleets_of
from server.registry import audit
from server.registry.models.fleets import DeviceConfiguration, Fleet, FleetConfiguration


def read_members(values: Mapping[str, Any]) -> Members:
    """The members that values by name are.

    Args:
        values: as JSON has them.

    Raises:
        Invalid: one is not known, out of its bounds or of another form, or they do not fit together; the text says which.
    """
    if unknown := sorted(set(values) - set(NAMES)):
        raise Invalid(f"a fleet cannot set {', '.join(unknown)}; it can set {', '.join(NAMES)}")
    try:
        members = msgspec.convert(dict(values), Members, strict=True)
    except msgspec.ValidationError as problem:
        raise Invalid(f"the configuration cannot be used: {msgspec_text(str(problem))}") from None
    if members.updates_window is not msgspec.UNSET:
        try:
            zone_of(members.updates_window.zone)
        except UnknownZone as problem:
            raise Invalid(f"the configuration cannot be used: 'zone' in updates.window {problem}") from None
    return members


def members_of(row: FleetConfiguration) -> Members:
    """What a configuration sets."""
    return msgspec.json.decode(row.content, type=Members)


def present(session: Session, fleet: Fleet) -> FleetConfiguration | None:
    """The configuration of a fleet that counts; None if it has none."""
    return None if fleet.configuration is None else session.get_one(FleetConfiguration, (fleet.id, fleet.configuration))


def configure(
    session: Session,
    fleet_id: str,
    members: Mapping[str, Any] | None,
    change: Mapping[str, Any],
    unset: frozenset[str],
    by: str,
    now: int,
    expected: int | None = None,
) -> FleetConfiguration:
    """Gives a fleet its next configuration. Its agents get it at their next contacts.

    Args:
        session: of a writing transaction.
        fleet_id: the fleet.
        members: all that it sets; None for what it sets now.
        change: members that are set besides, or otherwise.
        unset: members that are left to the machines' files from now on.
        by: who wants it.
        now: seconds since 1970 UTC.
        expected: the number that counts now, as the caller knows it, 0 for none; None if they do not say.

    Raises:
        NotFound: there is no such fleet.
        Conflict: another configuration counts than the caller knows.
        Invalid: the members cannot be used, or one is to be unset that is not set.
    """
    fleet = required(session, fleet_id, lock=True)
    before = present(session, fleet)
    if expected is not None and expected != (fleet.configuration or 0):
        raise Conflict(
            f"fleet {fleet_id!r} has configuration {fleet.configuration or 0}, not {expected}: look at "
            f"'license-server fleets configuration {fleet_id}' and decide again"
        )
    values = dict(members) if members is not None else {} if before is None else values_of(members_of(before))
    values |= change
    if missing := sorted(unset - values.keys()):
        raise Invalid(f"fleet {fleet_id!r} does not set {', '.join(missing)}")
    made = read_members({name: value for name, value in values.items() if name not in unset})
    if before is not None and made == members_of(before):
        return before
    row = FleetConfiguration(
        fleet_id=fleet_id,
        number=_last(session, fleet_id) + 1,
        content=msgspec.json.encode(made).decode(),
        created_by=by,
        created_at=now,
    )
    session.add(row)
    session.flush()
    fleet.configuration, fleet.updated_at, fleet.revision = row.number, now, fleet.revision + 1
    audit.record(
        session, audit.ADMIN, "fleet.configured", "ok", now, fleet=fleet_id, number=row.number, members=sorted(values_of(made))
    )
    return row


def _last(session: Session, fleet_id: str) -> int:
    """The highest number that a fleet of this id has had, also one that was deleted: its agents may have that in force."""
    queries = (
        select(func.max(table.number)).where(table.fleet_id == fleet_id) for table in (FleetConfiguration, DeviceConfiguration)
    )
    return max(session.scalar(query) or 0 for query in queries)


def end(session: Session, fleet_id: str, now: int) -> None:
    """Ends what a fleet sets: its agents go by their files, or by the next fleet in rank, from their next contacts on.

    Raises:
        NotFound: there is no such fleet, or it has no configuration.
    """
    fleet = required(session, fleet_id, lock=True)
    if fleet.configuration is None:
        raise NotFound(f"fleet {fleet_id!r} has no configuration")
    audit.record(session, audit.ADMIN, "fleet.configuration_ended", "ok", now, fleet=fleet_id, number=fleet.configuration)
    fleet.configuration, fleet.updated_at, fleet.revision = None, now, fleet.revision + 1


def history(session: Session, fleet_id: str, before: int | None, limit: int) -> list[FleetConfiguration]:
    """The configurations of a fleet, the newest first.

    Args:
        session: of any transaction.
        fleet_id: the fleet.
        before: only those with a lower number; None for all.
        limit: at most so many.

    Raises:
        NotFound: there is no such fleet.
    """
    required(session, fleet_id)
    query = select(FleetConfiguration).where(FleetConfiguration.fleet_id == fleet_id)
    if before is not None:
        query = query.where(FleetConfiguration.number < before)
    return list(session.scalars(query.order_by(FleetConfiguration.number.desc()).limit(limit)))


def configuring(session: Session, device_id: str) -> FleetConfiguration | None:
    """The configuration that counts for a device: that of the first of its fleets by rank that has one; None without one."""
    if session.scalar(select(Fleet.id).where(Fleet.configuration.is_not(None)).limit(1)) is None:
        return None  # most servers: not worth to look at memberships
    for fleet in fleets_of(session, device_id):
        if fleet.configuration is not None:
            return present(session, fleet)
    return None
