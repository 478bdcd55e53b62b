"""Moves the devices of rollouts from state to state, counts them, and acts on what the counters decide.

One transaction changes the state of a device, the counter of its group, and what follows from it: the latter two at its end
(`Tally`), since all devices of a group change the same row. Locks are taken in one order: devices, then groups by their
number, then the rollout, and last the counter of the audit log (`Records`). Behind the lock of the rollout only a group is
locked that has not started, which nobody holds who waits for the rollout.
"""

import time
from collections import Counter

from sqlalchemy import update
from sqlalchemy.orm import Session

from common.statetable import UnknownTransition
from server.registry import events
from server.registry.later import Records
from server.registry.models.rollouts import Rollout, RolloutDevice, RolloutGroup

from .decisions import NOTHING, decide
from .rows import counts_of, groups_of, policy_of
from .states import (
    COUNTER,
    DEVICE_STATES,
    GROUP_STATES,
    LIVE,
    ROLLOUT_STATES,
    Device,
    DeviceEvent,
    Event,
    Group,
    GroupEvent,
    State,
)

_DEADLINES = {Device.ORDERED: "ordered", Device.UNDER_WAY: "under_way", Device.INSTALLED: "installed"}
"""The member of the policy that says how long a state may last."""
MAX_DETAIL = 500


def move(rollout: Rollout, row: RolloutDevice, event: DeviceEvent, detail: str, now: int, records: Records) -> bool:
    """Changes the state of a device. Returns False for what cannot happen to it: reports come late.

    What follows for its group happens when the records are written.

    Args:
        rollout: the device's.
        row: the device, locked.
        event: what happens to it.
        detail: more about it, for people.
        now: seconds since 1970 UTC.
        records: for what the caller writes into the audit log last.
    """
    before = Device(row.state)
    try:
        after = DEVICE_STATES.step(before, event)
    except UnknownTransition:
        return False
    policy = policy_of(rollout)
    lasts = _DEADLINES.get(after)
    row.state, row.detail, row.updated_at = after.value, detail[:MAX_DETAIL], now
    row.deadline = None if lasts is None else now + int(getattr(policy, lasts))
    seconds = max(0, now - row.ordered_at) if after is Device.PROVED and row.ordered_at is not None else 0
    records.part(Tally).add(row, before, after, seconds, now)
    return True


class Tally:
    """What the devices of a transaction change in the counters of their groups.

    It is counted when the transaction has nothing else to wait for: the row of a group is what its devices wait for.
    """

    def __init__(self) -> None:
        self._changes: dict[tuple[str, int], Counter[str]] = {}
        self._now = 0

    def add(self, row: RolloutDevice, before: Device, after: Device, seconds: int, now: int) -> None:
        """Notes that a device has gone from one state to another.

        Args:
            row: the device.
            before: its state before.
            after: its state now.
            seconds: from its order to its proof; 0 for every other change.
            now: seconds since 1970 UTC.
        """
        self._now = now
        if COUNTER[before] != COUNTER[after]:
            changes = self._changes.setdefault((row.rollout_id, row.group_number), Counter())
            changes.update({COUNTER[after]: 1, "seconds": seconds})
            changes.subtract({COUNTER[before]: 1})

    def finish(self, session: Session, records: Records) -> None:
        """Counts, groups in the order of their numbers, and does what the counters decide."""
        changes, self._changes = self._changes, {}
        session.flush()
        groups = [_count(session, key, change) for key, change in sorted(changes.items())]
        for rollout_id in sorted({group.rollout_id for group in groups if _decides(session, group)}):
            settle(session, rollout_id, self._now, records)


def _count(session: Session, key: tuple[str, int], change: Counter[str]) -> RolloutGroup:
    """The group with its counters changed, locked."""
    changed = {name: getattr(RolloutGroup, name) + by for name, by in change.items() if by}
    where = RolloutGroup.rollout_id == key[0], RolloutGroup.number == key[1]
    counted = update(RolloutGroup).where(*where).values(**(changed or {"seconds": RolloutGroup.seconds}))
    options = {"synchronize_session": False, "populate_existing": True}
    return session.scalars(counted.returning(RolloutGroup), execution_options=options).one()


def _decides(session: Session, group: RolloutGroup) -> bool:
    rollout = session.get(Rollout, group.rollout_id)
    return rollout is not None and counts_of(group, policy_of(rollout)).decides


def settle(session: Session, rollout_id: str, now: int, records: Records) -> None:
    """Does what the counters of a rollout say: starts the next group, stops the rollout, or ends it.

    Who comes second here waits for the first one, and sees what that one has counted.
    """
    session.flush()
    rollout = session.get(Rollout, rollout_id, with_for_update=True, populate_existing=True)
    if rollout is None or rollout.state not in LIVE:
        return
    policy = policy_of(rollout)
    while rollout.state in LIVE:
        rows = groups_of(session, rollout_id)
        found = decide([counts_of(row, policy) for row in rows], may_start=rollout.state != State.PAUSED)
        if found == NOTHING:
            return
        if found.failed is not None:
            _step_group(rows[found.failed - 1], GroupEvent.FAIL, now)
            end(session, rollout, Event.STOP, found.reason, now)
            events.emit(session, "rollout.stopped", now, rollout=rollout.id, group=found.failed)
            records.add("server", "rollout.stopped", "alert", now, rollout=rollout.id, group=found.failed, why=found.reason)
            return
        if found.succeeded is not None:
            _step_group(rows[found.succeeded - 1], GroupEvent.SUCCEED, now)
        if found.start is not None:
            start_group(session, rows[found.start - 1], now)
        if found.finish:
            _finish(session, rollout, now, records)


def begin(session: Session, rollout: Rollout, now: int) -> None:
    """Begins a rollout whose notice has ended: its first group starts, unless it has. The caller has locked the rollout."""
    step(rollout, Event.BEGIN, now)
    first = groups_of(session, rollout.id)[0]
    if first.state == Group.WAITING:
        start_group(session, first, now)


def start_group(session: Session, group: RolloutGroup, now: int) -> None:
    """Starts a group, which changes one row: each of its devices finds that at its next contact."""
    _step_group(group, GroupEvent.START, now)
    group.started_at = now
    events.emit(session, "rollout.group_started", now, rollout=group.rollout_id, group=group.number)


def step(rollout: Rollout, event: Event, now: int) -> None:
    """Changes the state of a rollout, which the caller has locked. Raises UnknownTransition."""
    rollout.state = ROLLOUT_STATES.step(State(rollout.state), event).value
    rollout.updated_at, rollout.revision = now, rollout.revision + 1


def end(session: Session, rollout: Rollout, event: Event, detail: str, now: int) -> None:
    """Ends a rollout, which the caller has locked. One row changes: its devices find that at their next contacts."""
    step(rollout, event, now)
    rollout.detail, rollout.ended_at = detail[:MAX_DETAIL], now
    session.flush()


def _finish(session: Session, rollout: Rollout, now: int, records: Records) -> None:
    end(session, rollout, Event.FINISH, "", now)
    events.emit(session, "rollout.finished", now, rollout=rollout.id)
    records.add("server", "rollout.finished", "ok", now, rollout=rollout.id)
    if rollout.rolls_back is None:
        return
    former = session.get(Rollout, rollout.rolls_back, with_for_update=True, populate_existing=True)
    if former is not None and former.state in (State.FINISHED, State.STOPPED):
        step(former, Event.ROLL_BACK, now)
        events.emit(session, "rollout.rolled_back", now, rollout=former.id, by=rollout.id)
        records.add("server", "rollout.rolled_back", "ok", now, rollout=former.id, by=rollout.id)


def _step_group(group: RolloutGroup, event: GroupEvent, now: int) -> None:
    group.state = GROUP_STATES.step(Group(group.state), event).value
    if group.state != Group.RUNNING:
        group.ended_at = now


def utc_day(at: int) -> str:
    """A time for people, to the minute, UTC."""
    return time.strftime("%Y-%m-%d %H:%MZ", time.gmtime(at))
