"""Keeps the queue of a device: which rollout concerns it now, which one waits, and what becomes of what it was given.

A device has one order at a time. Of several rollouts of a product, the one that was started first counts, until the device is
done with it; the later one waits, and its row says for which. A device that is no agent is served by `open_for` and `report`;
`contact` serves agents, with directives.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from server.fleet.devices.selection import matches, parse
from server.fleet.fleets.membership import is_member
from server.ota.directives import hardware_of
from server.registry.later import Records
from server.registry.models.fleets import Device as DeviceRow
from server.registry.models.fleets import DeviceVersion, Fleet
from server.registry.models.rollouts import Rollout, RolloutDevice, RolloutGroup
from server.registry.models.updates import UpdatePackage

from . import turns
from .fitting import Running, Wanted, runs_already, unfit
from .policy import Policy, ends_of_freeze, frozen_at
from .rows import IS_OPEN, policy_of
from .states import LIVE, OPEN, ORDERED, Device, DeviceEvent, Group, State

STOPPED = "the rollout was stopped before the device began"


@dataclass(frozen=True, slots=True)
class Place:
    """A device's place in a rollout.

    Attributes:
        row: the device's.
        rollout: which one.
        started: whether its group has started.
    """

    row: RolloutDevice
    rollout: Rollout
    started: bool


@dataclass(frozen=True, slots=True)
class Target:
    """What a device is to install.

    Attributes:
        package: as the repository has it now.
        build_id: that was approved.
        downgrade: whether its version may be lower than what runs.
    """

    package: Wanted
    build_id: str
    downgrade: bool


def places(session: Session, device_id: str) -> list[Place]:
    """Where something is to come for a device, the rollout that was started first at the front. One statement, by an index."""
    session.flush()
    on_group = (RolloutGroup.rollout_id == RolloutDevice.rollout_id) & (RolloutGroup.number == RolloutDevice.group_number)
    query = (
        select(RolloutDevice, Rollout, RolloutGroup.state)
        .join(Rollout, Rollout.id == RolloutDevice.rollout_id)
        .join(RolloutGroup, on_group)
        .where(RolloutDevice.device_id == device_id, IS_OPEN)
        .where(Rollout.started_at.is_not(None))
    )
    found = [Place(row, rollout, group != Group.WAITING) for row, rollout, group in session.execute(query)]
    return sorted(found, key=lambda place: (place.rollout.started_at or 0, place.rollout.id))


def locked(session: Session, place: Place) -> Place:
    """The same place as the database has it now; its row stays locked until the transaction ends."""
    key = place.row.rollout_id, place.row.device_id
    row = session.get(RolloutDevice, key, with_for_update=True, populate_existing=True)
    rollout = session.get(Rollout, place.rollout.id, populate_existing=True)
    assert row is not None and rollout is not None
    return Place(row, rollout, place.started)


def awaited(session: Session, found: list[Place], now: int, records: Records) -> Iterator[Place]:
    """The places that may be given an order now, in the order of the queue; none while the device has one.

    Args:
        session: of a writing transaction.
        found: of `places`.
        now: seconds since 1970 UTC.
        records: for what the caller writes into the audit log last.
    """
    if any(place.row.state in ORDERED for place in found):
        return
    first: dict[str, str] = {}
    for place in found:
        rollout = place.rollout
        if rollout.state not in LIVE:
            continue
        earlier = first.setdefault(rollout.product, rollout.id)
        if earlier != rollout.id:
            waits(place.row, f"rollout {earlier} counts first", now)
            continue
        if not begin_due(session, rollout, now) and not place.started:
            continue  # the most frequent of all contacts: its group waits
        present = locked(session, place)
        if (
            present.row.state == Device.WAITING
            and present.rollout.state in (State.ANNOUNCED, State.RUNNING)
            and (place.started or _has_started(session, present.row))
        ):
            policy = policy_of(rollout)
            if frozen_at(policy, now):
                waits(present.row, f"nothing begins before {turns.utc_day(ends_of_freeze(policy, now))}", now)
                continue
            yield present
            if present.row.state not in OPEN:
                del first[rollout.product]  # the device is done with it, and the next one counts


def begin_due(session: Session, rollout: Rollout, now: int) -> bool:
    """Begins a rollout if its notice has ended. Returns whether its first group may have started just now."""
    if rollout.state != State.ANNOUNCED or now < notice_until(rollout):
        return False
    session.flush()
    present = session.get(Rollout, rollout.id, with_for_update=True, populate_existing=True)
    if present is not None and present.state == State.ANNOUNCED:
        turns.begin(session, present, now)
        session.flush()
    return True


def notice_until(rollout: Rollout) -> int:
    """Until when a rollout is only announced, seconds since 1970 UTC."""
    return (rollout.started_at or 0) + policy_of(rollout).notice


def waits(row: RolloutDevice, detail: str, now: int) -> None:
    """Notes what a device waits for. Writes nothing if that is known."""
    if row.detail != detail:
        row.detail, row.updated_at = detail, now


def _has_started(session: Session, row: RolloutDevice) -> bool:
    group = session.get(RolloutGroup, (row.rollout_id, row.group_number), populate_existing=True)
    return group is not None and group.state != Group.WAITING


# What it is to install


def target_of(session: Session, rollout: Rollout, device_id: str, hardware: str | None) -> Target | str:
    """What a device is to install, or why there is no such package.

    Args:
        session: of any transaction.
        rollout: the device's.
        device_id: the device.
        hardware: the kind of machine that it says it is; None if it has not said.
    """
    if rollout.rolls_back is None:
        package = session.get(UpdatePackage, rollout.path)
        if package is None:
            return f"the repository has the package {rollout.path} no more"
        return Target(_wanted(package), rollout.build_id, downgrade=False)
    former = session.get(RolloutDevice, (rollout.rolls_back, device_id))
    if former is None or former.before is None:
        return "which version the device ran before is not known"
    same = UpdatePackage.product == rollout.product, UpdatePackage.version == former.before
    fitting = [
        package
        for package in session.scalars(select(UpdatePackage).where(*same).order_by(UpdatePackage.path))
        if hardware is None or hardware in hardware_of(package)
    ]
    if len(fitting) != 1:
        why = "no package" if not fitting else "more than one package"
        return f"the repository has {why} of {rollout.product} {former.before} for the device"
    return Target(_wanted(fitting[0]), fitting[0].build_id, downgrade=True)


def _wanted(package: UpdatePackage) -> Wanted:
    return Wanted(
        package.path, package.version, package.build_id, hardware_of(package), package.length, package.role
    )  # fmt: skip


def judged(
    session: Session, place: Place, hardware: str | None, running: Running | None, now: int, records: Records
) -> Target | None:
    """What a device is to be ordered now; None if it is done with the rollout: it runs the build, or cannot take it.

    Args:
        session: of a writing transaction.
        place: a locked one.
        hardware: the kind of machine that it says it is; None if it has not said.
        running: what it runs of the product; None if it has not said.
        now: seconds since 1970 UTC.
        records: for what the caller writes into the audit log last.
    """
    if place.rollout.rolls_back is not None and running is not None:
        former = session.get(RolloutDevice, (place.rollout.rolls_back, place.row.device_id))
        if former is not None and former.before == running.version:
            said = f"it runs {running.version} already"
            turns.move(place.rollout, place.row, DeviceEvent.PROVE, said, now, records)
            return None
    target = target_of(session, place.rollout, place.row.device_id, hardware)
    if isinstance(target, str):
        turns.move(place.rollout, place.row, DeviceEvent.LEAVE_OUT, target, now, records)
        return None
    if runs_already(target.package, running):
        turns.move(place.rollout, place.row, DeviceEvent.PROVE, "it runs this build already", now, records)
        return None
    candidate = policy_of(place.rollout).candidate or target.downgrade
    why = unfit(target.package, target.build_id, hardware, running, candidate=candidate, downgrade=target.downgrade)
    if why is not None:
        turns.move(place.rollout, place.row, DeviceEvent.LEAVE_OUT, why, now, records)
        return None
    return target


def ordered(session: Session, place: Place, number: int, running: Running | None, now: int, records: Records) -> None:
    """Notes that a device has its order."""
    place.row.number, place.row.ordered_at = number, now
    place.row.before = None if running is None else running.version
    turns.move(place.rollout, place.row, DeviceEvent.ORDER, "", now, records)


# Devices that come later


def take_in(session: Session, device_id: str, now: int) -> bool:
    """Puts a device that has come to a fleet later into the last group of the fleet's rollouts, unless that has ended.

    Returns whether it is in one more rollout now. Rollouts that take others back take nobody in.
    """
    there = exists().where(RolloutDevice.rollout_id == Rollout.id, RolloutDevice.device_id == device_id)
    states = [each.value for each in LIVE]
    query = select(Rollout).where(Rollout.state.in_(states), Rollout.rolls_back.is_(None), ~there).order_by(Rollout.id)
    taken = False
    for rollout in session.scalars(query).all():
        fleet = session.get(Fleet, rollout.fleet_id)
        if fleet is None or not is_member(session, fleet, device_id):
            continue
        if rollout.selection is None or matches(session, parse(rollout.selection), device_id):
            taken = _add(session, rollout, device_id, now) or taken
    return taken


def _add(session: Session, rollout: Rollout, device_id: str, now: int) -> bool:
    last = session.scalar(select(func.max(RolloutGroup.number)).where(RolloutGroup.rollout_id == rollout.id))
    group = session.get(RolloutGroup, (rollout.id, last), with_for_update=True, populate_existing=True)
    if group is None or group.state not in (Group.WAITING, Group.RUNNING):
        return False
    session.add(
        RolloutDevice(
            rollout_id=rollout.id, device_id=device_id, group_number=group.number, state=Device.WAITING.value, number=None,
            before=None, ordered_at=None, detail="", deadline=None, updated_at=now,
        )
    )  # fmt: skip
    group.total, group.waiting = group.total + 1, group.waiting + 1
    session.flush()
    return True


# Devices that are no agents


def open_for(session: Session, device_id: str, now: int, records: Records | None = None) -> RolloutDevice | None:
    """What a device that is no agent is to do now: its row, with the number of its action; None if nothing is open for it.

    The row's rollout has the package (`target_for`) and the policy with the window; the caller keeps the window.

    Args:
        session: of a writing transaction that has locked the device.
        device_id: the device.
        now: seconds since 1970 UTC.
        records: for what the caller writes into the audit log last; None writes it here.
    """
    collected = Records() if records is None else records
    found = _open_for(session, device_id, now, collected)
    # Counted here: the caller may go on to lock a counter of its own.
    collected.part(turns.Tally).finish(session, collected)
    if records is None:
        collected.write(session)
    return found


def _open_for(session: Session, device_id: str, now: int, records: Records) -> RolloutDevice | None:
    take_in(session, device_id, now)
    found = [locked(session, place) if place.row.state in ORDERED else place for place in places(session, device_id)]
    for place in found:
        if place.row.state in ORDERED:
            if place.rollout.state in (State.STOPPED, State.ROLLED_BACK) and place.row.state == Device.ORDERED:
                turns.move(place.rollout, place.row, DeviceEvent.LEAVE_OUT, STOPPED, now, records)
                continue
            return place.row
    device = session.get(DeviceRow, device_id)
    for place in awaited(session, found, now, records):
        running = running_of(session, device_id, place.rollout.product)
        if judged(session, place, None if device is None else device.hardware, running, now, records) is not None:
            ordered(session, place, action_of(place.rollout.id), running, now, records)
            records.add("server", "rollout.ordered", "ok", now, rollout=place.rollout.id, device=device_id)
            return place.row
    return None


def target_for(session: Session, row: RolloutDevice) -> UpdatePackage | None:
    """The package that a device of `open_for` is to install; None if the repository has it no more."""
    rollout, device = session.get(Rollout, row.rollout_id), session.get(DeviceRow, row.device_id)
    if rollout is None:
        return None
    target = target_of(session, rollout, row.device_id, None if device is None else device.hardware)
    return None if isinstance(target, str) else session.get(UpdatePackage, target.package.path)


def report(
    session: Session,
    rollout_id: str,
    device_id: str,
    event: DeviceEvent,
    detail: str,
    now: int,
    records: Records | None = None,
) -> bool:
    """Notes what a device that is no agent reports, or has shown. Returns whether that was anything new.

    Args:
        session: of a writing transaction.
        rollout_id: the rollout that its action belongs to.
        device_id: the device.
        event: what happened. PROVE is for who has seen the device name the version after its restart.
        detail: more about it, for people.
        now: seconds since 1970 UTC.
        records: for what the caller writes into the audit log last; None writes it here.
    """  # fmt: skip
    collected = Records() if records is None else records
    row = session.get(RolloutDevice, (rollout_id, device_id), with_for_update=True, populate_existing=True)
    rollout = session.get(Rollout, rollout_id)
    known = row is not None and rollout is not None and row.number is not None
    moved = known and turns.move(rollout, row, event, detail, now, collected)  # type: ignore[arg-type]
    if records is None:
        collected.write(session)
    return moved


def running_of(session: Session, device_id: str, product: str) -> Running | None:
    """What a device runs of a product, as it last reported; None if it has not."""
    row = session.get(DeviceVersion, (device_id, product))
    return None if row is None else Running(row.version, row.build_id)


def action_of(rollout_id: str) -> int:
    """The number of a device's action in a rollout: the same for all its devices, another one in each rollout."""
    return int.from_bytes(hashlib.sha256(rollout_id.encode()).digest()[:6], "big") + 1


def policy_for(session: Session, row: RolloutDevice) -> Policy:
    """The policy of a device's rollout."""
    rollout = session.get(Rollout, row.rollout_id)
    assert rollout is not None
    return policy_of(rollout)
