"""Makes, changes and deletes fleets, and keeps their static members."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.devices import registry as devices
from server.fleet.devices.selection import parse
from server.fleet.devices.syntax import Field
from server.registry import audit
from server.registry.models.fleets import DeviceConfiguration, Fleet, FleetConfiguration, FleetMember
from server.registry.models.monitoring import FleetObservation, FleetSilence, FleetWatch
from server.registry.models.rollouts import AutomaticRollout, Rollout

MAX_FLEETS = 500
"""Each contact that asks for a configuration looks at all fleets, and each has metrics of its own."""
RANK_STEP = 10
"""Between the ranks that are given by themselves, so that a fleet can be put between two others."""
MAX_RANK = 1_000_000


@dataclass(frozen=True, slots=True)
class FleetRow:
    """A fleet. Times are seconds since 1970 UTC.

    Attributes:
        fleet_id: its id.
        name: for people.
        tags: of the fleet itself, not of its devices.
        selection: selects devices; None if it has static members only.
        rank: a device in several fleets is configured by the one of the lowest rank.
        static: number of static members.
        configuration: number of the configuration that counts; None before the first.
        created_at: when it was made.
        updated_at: when it was last changed.
        revision: how often it was changed, plus one.
    """

    fleet_id: str
    name: str
    tags: tuple[str, ...]
    selection: str | None
    rank: int
    static: int
    configuration: int | None
    created_at: int
    updated_at: int
    revision: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What a fleet is to be; None leaves it as it is, or for a new fleet as it is by default.

    Attributes:
        name: for people.
        tags: of the fleet.
        selection: selects devices; an empty text for none.
        rank: its place among the fleets; by default behind all others.
    """

    name: str | None = None
    tags: tuple[str, ...] | None = None
    selection: str | None = None
    rank: int | None = None


def required(session: Session, fleet_id: str, *, lock: bool = False) -> Fleet:
    """A fleet. Raises NotFound."""
    fleet = session.get(Fleet, fleet_id, with_for_update=lock or None, populate_existing=lock)
    if fleet is None:
        raise NotFound(f"there is no fleet {fleet_id!r}; 'license-server fleets list' lists them")
    return fleet


def create(session: Session, fleet_id: str, wish: Wish, now: int) -> Fleet:
    """Makes a fleet.

    Args:
        session: of a writing transaction.
        fleet_id: its id.
        wish: what it is to be.
        now: seconds since 1970 UTC.

    Raises:
        Conflict: there is such a fleet, its rank is taken, or there are `MAX_FLEETS`.
        Invalid: the selection is malformed.
        NotFound: the selection names a fleet that does not exist.
    """
    if session.get(Fleet, fleet_id) is not None:
        raise Conflict(f"there is a fleet {fleet_id!r} already; 'license-server fleets show {fleet_id}' shows it")
    if (session.scalar(select(func.count()).select_from(Fleet)) or 0) >= MAX_FLEETS:
        raise Conflict(f"there are {MAX_FLEETS} fleets, which is the limit: use tags for smaller parts, or delete a fleet")
    highest: int = session.scalar(select(func.max(Fleet.rank))) or 0
    fleet = Fleet(
        id=fleet_id, name=wish.name or fleet_id, tags="[]", selection=None, rank=highest + RANK_STEP, policy="{}",
        created_at=now, updated_at=now, revision=0,
    )  # fmt: skip
    _apply(session, fleet, wish, now)
    session.add(fleet)
    session.flush()
    audit.record(session, audit.ADMIN, "fleet.created", "ok", now, fleet=fleet_id, selection=fleet.selection, rank=fleet.rank)
    return fleet


def change(session: Session, fleet_id: str, wish: Wish, now: int) -> Fleet:
    """Changes a fleet. Who belongs to it by another selection is seen at each device's next contact.

    Args:
        session: of a writing transaction.
        fleet_id: the fleet.
        wish: what is to be another.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such fleet, or none that the selection names.
        Conflict: the rank is taken.
        Invalid: the selection is malformed.
    """
    fleet = required(session, fleet_id, lock=True)
    _apply(session, fleet, wish, now)
    audit.record(session, audit.ADMIN, "fleet.changed", "ok", now, fleet=fleet_id, selection=fleet.selection, rank=fleet.rank)
    return fleet


def _apply(session: Session, fleet: Fleet, wish: Wish, now: int) -> None:
    if wish.selection:
        for term in parse(wish.selection).terms():
            if term.field is Field.FLEET and term.value == fleet.id:
                raise Invalid(
                    f"a fleet does not select itself: leave fleet={fleet.id} out, its static members belong to it anyway"
                )
            if term.field is Field.FLEET:
                required(session, term.value)
    if wish.rank is not None:
        other = session.scalar(select(Fleet.id).where(Fleet.rank == wish.rank, Fleet.id != fleet.id))
        if other is not None:
            raise Conflict(f"fleet {other!r} has rank {wish.rank}: give another one")
        fleet.rank = wish.rank
    elif fleet.rank > MAX_RANK:
        raise Conflict(f"the highest rank is beyond {MAX_RANK}: give a rank that is free")
    fleet.name = fleet.name if wish.name is None else wish.name
    fleet.selection = fleet.selection if wish.selection is None else wish.selection or None
    fleet.tags = fleet.tags if wish.tags is None else json.dumps(sorted(set(wish.tags)))
    fleet.updated_at, fleet.revision = now, fleet.revision + 1


def remove(session: Session, fleet_id: str, now: int) -> None:
    """Deletes a fleet with its configurations, and what was observed of it. Its devices and its alerts stay.

    Args:
        session: of a writing transaction.
        fleet_id: the fleet.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such fleet.
        Conflict: a rollout of it has not ended, or another fleet selects its members.
    """
    fleet = required(session, fleet_id, lock=True)
    running = select(Rollout.id).where(Rollout.fleet_id == fleet_id, Rollout.ended_at.is_(None)).limit(1)
    open_rollout = session.scalar(running)
    if open_rollout is not None:
        raise Conflict(f"rollout {open_rollout!r} of fleet {fleet_id!r} has not ended: stop it first")
    for other in session.scalars(select(Fleet).where(Fleet.selection.is_not(None), Fleet.id != fleet_id)):
        if any(each.field is Field.FLEET and each.value == fleet_id for each in parse(other.selection or "").terms()):
            raise Conflict(f"fleet {other.id!r} selects members of {fleet_id!r}: change its selection first")
    for model in (
        FleetMember,
        FleetConfiguration,
        DeviceConfiguration,
        AutomaticRollout,
        FleetWatch,
        FleetObservation,
        FleetSilence,
    ):
        session.execute(delete(model).where(model.fleet_id == fleet_id))
    session.delete(fleet)
    session.flush()
    audit.record(session, audit.ADMIN, "fleet.deleted", "ok", now, fleet=fleet_id)


def add_members(session: Session, fleet_id: str, device_ids: Iterable[str], now: int) -> int:
    """Puts devices into a fleet; returns how many were not in it as static members.

    Args:
        session: of a writing transaction.
        fleet_id: the fleet.
        device_ids: the devices; a bounded number.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such fleet or device.
    """
    return _set_members(session, fleet_id, device_ids, now, belong=True)


def remove_members(session: Session, fleet_id: str, device_ids: Iterable[str], now: int) -> int:
    """Takes static members out of a fleet; returns how many there were. Those that its selection selects stay in it.

    Raises:
        NotFound: there is no such fleet or device.
    """
    return _set_members(session, fleet_id, device_ids, now, belong=False)


def _set_members(session: Session, fleet_id: str, device_ids: Iterable[str], now: int, *, belong: bool) -> int:
    fleet = required(session, fleet_id, lock=True)
    wanted = sorted(set(device_ids))
    for each in wanted:
        devices.required(session, each, lock=belong)  # a device that is deleted meanwhile would leave its membership
    mine = (FleetMember.fleet_id == fleet_id, FleetMember.device_id.in_(wanted))
    present = set(session.scalars(select(FleetMember.device_id).where(*mine)))
    changed = [each for each in wanted if (each in present) is not belong]
    if belong:
        session.add_all(FleetMember(fleet_id=fleet_id, device_id=each) for each in changed)
    else:
        session.execute(delete(FleetMember).where(FleetMember.fleet_id == fleet_id, FleetMember.device_id.in_(changed)))
    if changed:
        fleet.updated_at, fleet.revision = now, fleet.revision + 1
        event = "fleet.members_added" if belong else "fleet.members_removed"
        audit.record(session, audit.ADMIN, event, "ok", now, fleet=fleet_id, devices=changed)
    return len(changed)


def listed(session: Session, after: str = "", limit: int | None = None) -> list[FleetRow]:
    """Fleets in the order of their rank, behind a rank given as text."""
    query = select(Fleet).order_by(Fleet.rank).where(Fleet.rank > int(after or "0")).limit(limit)
    return [row_of(session, fleet) for fleet in session.scalars(query)]


def row_of(session: Session, fleet: Fleet) -> FleetRow:
    """A fleet as people see it."""
    session.flush()
    static = session.scalar(select(func.count()).select_from(FleetMember).where(FleetMember.fleet_id == fleet.id)) or 0
    return FleetRow(
        fleet.id, fleet.name, tuple(json.loads(fleet.tags)), fleet.selection, fleet.rank, static, fleet.configuration,
        fleet.created_at, fleet.updated_at, fleet.revision,
    )  # fmt: skip
