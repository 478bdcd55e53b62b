"""Starts, pauses, stops and takes back rollouts. Every function works in the transaction of the session that it is given.

None of them touches the rows of devices: each device finds at its next contact what has changed for it.
"""

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from common.statetable import UnknownTransition
from server.base.errors import Conflict
from server.registry import audit, events
from server.registry.later import Records
from server.registry.models.rollouts import Rollout, RolloutDevice

from . import queue, rows, turns
from .policy import Policy, takes_of
from .rows import Plan, groups_of, policy_of, published, required
from .states import LIVE, Event, Group, State


def create(session: Session, plan: Plan, by: str, now: int) -> Rollout:
    """Makes a rollout, as a draft. Raises as `rows.create`."""
    row = rows.create(session, plan, by, now)
    fields = {"fleet": row.fleet_id, "target": row.path, "build": row.build_id}
    audit.record(session, audit.ADMIN, "rollout.created", "ok", now, rollout=row.id, **fields)
    return row


def require_startable(session: Session, rollout_id: str) -> Rollout:
    """The rollout, if it can be started as things are. Raises NotFound, Conflict."""
    row = required(session, rollout_id)
    if row.state != State.DRAFT:
        raise Conflict(f"rollout {row.id!r} is {row.state}; a draft can be started")
    if row.rolls_back is None:
        package = published(session, row.path, candidate=policy_of(row).candidate)
        if package.build_id != row.build_id:
            raise Conflict(f"{row.path} is build {package.build_id}, and the rollout is for build {row.build_id}: make another")
    return row


def start(session: Session, rollout_id: str, now: int) -> Rollout:
    """Starts a rollout: it is announced, and begins when its notice ends.

    Raises:
        NotFound: there is no such rollout, or the repository has its package no more.
        Conflict: it is no draft.
    """
    required(session, rollout_id, lock=True)
    row = require_startable(session, rollout_id)
    records = Records()
    _start(session, row, now, records)
    audit.record(session, audit.ADMIN, "rollout.started", "ok", now, rollout=row.id, build=row.build_id)
    records.write(session)
    return row


def start_automatically(session: Session, plan: Plan, by: str, now: int) -> Rollout:
    """Makes a rollout and starts it; two people have wanted that of each release. Raises as `rows.create`."""
    row = rows.create(session, plan, by, now)
    records = Records()
    _start(session, row, now, records)
    fields = {"fleet": row.fleet_id, "target": row.path, "build": row.build_id}
    audit.record(session, audit.ADMIN, "rollout.started_automatically", "ok", now, rollout=row.id, **fields)
    records.write(session)
    return row


def _start(session: Session, row: Rollout, now: int, records: Records) -> None:
    policy = policy_of(row)
    turns.step(row, Event.START, now)
    row.started_at = now
    events.emit(session, "rollout.started", now, rollout=row.id, fleet=row.fleet_id, notice_until=now + policy.notice)
    if policy.notice == 0:
        turns.begin(session, row, now)
    elif policy.prestage:
        turns.start_group(session, groups_of(session, row.id)[0], now)
    turns.settle(session, row.id, now, records)


def pause(session: Session, rollout_id: str, now: int) -> Rollout:
    """Pauses a rollout: nobody is given an order, and no group starts. Raises NotFound, Conflict."""
    row = required(session, rollout_id, lock=True)
    _step(row, Event.PAUSE, now)
    events.emit(session, "rollout.paused", now, rollout=row.id)
    audit.record(session, audit.ADMIN, "rollout.paused", "ok", now, rollout=row.id)
    return row


def resume(session: Session, rollout_id: str, now: int) -> Rollout:
    """Lets a rollout go on. The time that devices wait for their orders counts from now. Raises NotFound, Conflict."""
    required(session, rollout_id)
    groups = groups_of(session, rollout_id, lock=True)
    row = required(session, rollout_id, lock=True)
    _step(row, Event.RESUME, now)
    for group in groups:
        if group.state != Group.WAITING and group.waiting:
            group.started_at = now
    if now >= queue.notice_until(row):
        turns.begin(session, row, now)
    events.emit(session, "rollout.resumed", now, rollout=row.id)
    records = Records()
    turns.settle(session, row.id, now, records)
    audit.record(session, audit.ADMIN, "rollout.resumed", "ok", now, rollout=row.id)
    records.write(session)
    return row


def stop(session: Session, rollout_id: str, why: str, now: int) -> Rollout:
    """Stops a rollout for good: what a device has not begun is withdrawn at its next contact. Raises NotFound, Conflict."""
    row = required(session, rollout_id, lock=True)
    _stop(session, row, why, now)
    audit.record(session, audit.ADMIN, "rollout.stopped", "ok", now, rollout=row.id)
    return row


def _stop(session: Session, row: Rollout, why: str, now: int) -> None:
    try:
        turns.end(session, row, Event.STOP, why, now)
    except UnknownTransition:
        raise Conflict(f"rollout {row.id!r} is {row.state} already") from None
    events.emit(session, "rollout.stopped", now, rollout=row.id)


def require_reversible(session: Session, rollout_id: str) -> Rollout:
    """The rollout, if it can be taken back as things are. Raises NotFound, Conflict."""
    row = required(session, rollout_id)
    if row.rolls_back is not None:
        raise Conflict(f"rollout {row.id!r} takes {row.rolls_back!r} back itself: make a rollout of the package that you want")
    if row.state in (State.DRAFT, State.ROLLED_BACK):
        raise Conflict(f"rollout {row.id!r} is {row.state}: there is nothing to take back")
    other = session.scalar(select(Rollout.id).where(Rollout.rolls_back == row.id, Rollout.state.in_([*LIVE])).limit(1))
    if other is not None:
        raise Conflict(f"rollout {other!r} takes {row.id!r} back already")
    if session.scalar(_hit(row).limit(1)) is None:
        ends = "; 'license-server rollouts stop' ends it" if row.state in LIVE else ""
        raise Conflict(
            f"no device of rollout {row.id!r} has had an order and said what it ran before: there is nothing to take back{ends}"
        )
    return row


def _hit(row: Rollout) -> Select[str]:
    """The devices of a rollout that go back: those that were given an order and have said what they ran."""
    had = RolloutDevice.number.is_not(None), RolloutDevice.before.is_not(None)
    return select(RolloutDevice.device_id).where(RolloutDevice.rollout_id == row.id, *had)


def roll_back(session: Session, rollout_id: str, new_id: str, policy: Policy, by: str, now: int) -> Rollout:
    """Takes back the devices of a rollout: each gets the package of the version that it ran before. It is started at once.

    A rollout that is not at its end is stopped first.

    Args:
        session: of a writing transaction.
        rollout_id: whose devices go back: those that were given an order and have said what they ran.
        new_id: of the rollout that takes them back.
        policy: of that one.
        by: who wants it.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such rollout.
        Conflict: it cannot be taken back, none of its devices had an order, or there is a rollout of the new id.
        Invalid: the new id is malformed.
    """
    required(session, rollout_id, lock=True)
    former = require_reversible(session, rollout_id)
    if former.state in LIVE:
        _stop(session, former, f"rollout {new_id} takes it back", now)
    row = rows.new_row(session, new_id, former.fleet_id, former.product, policy, by, now)
    row.rolls_back = former.id
    session.add(row)
    session.flush()
    rows.fill(session, row, _hit(former), takes_of(policy.groups), policy, now)
    records = Records()
    _start(session, row, now, records)
    audit.record(session, audit.ADMIN, "rollout.taken_back", "ok", now, rollout=former.id, by=row.id)
    records.write(session)
    return row


def _step(row: Rollout, event: Event, now: int) -> None:
    try:
        turns.step(row, event, now)
    except UnknownTransition as problem:
        raise Conflict(f"rollout {row.id!r}: {problem}") from None
