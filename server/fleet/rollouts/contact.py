"""Makes directives of rollouts at the contacts of agents, and notes what the agents report of them.

Both functions belong into the transaction of the contact, between its report and its answer (`server.ota.reports`).
"""

from collections.abc import Iterable

from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.devices.registry import ensure_agent
from server.ota import directives
from server.ota.directive_states import State as DirectiveState
from server.ota.directives import Order
from server.registry.later import Records
from server.registry.models.rollouts import Rollout, RolloutDevice
from server.registry.models.updates import UpdateDirective

from . import queue, turns
from .fitting import Running
from .policy import next_freeze, window_of
from .queue import STOPPED, Place, Target
from .rows import policy_of
from .states import ORDERED, Device, DeviceEvent, State, of_directive

_ENDED = "the order ended before the device began"


def after_reports(session: Session, agent_id: str, changed: Iterable[UpdateDirective], now: int, records: Records) -> None:
    """Steps the devices of rollouts on by what an agent has just reported, also of what had ended for the rollout.

    Args:
        session: of a writing transaction that has locked the agent.
        agent_id: the agent.
        changed: the directives of which it has reported something.
        now: seconds since 1970 UTC.
        records: for what the caller writes into the audit log last.
    """
    for directive in changed:
        if directive.rollout:
            key = directive.rollout, agent_id
            row = session.get(RolloutDevice, key, with_for_update=True, populate_existing=True)
            rollout = session.get(Rollout, directive.rollout)
            if row is not None and rollout is not None and row.number == directive.number:
                _follow(session, rollout, row, directive, now, records)


def before_directive(session: Session, agent_id: str, now: int, records: Records) -> None:
    """Gives an agent the directive of the rollout whose turn it is, and withdraws what it has not begun of a stopped one.

    Args:
        session: of a writing transaction that has locked the agent.
        agent_id: the agent.
        now: seconds since 1970 UTC.
        records: for what the caller writes into the audit log last.
    """
    queue.take_in(session, agent_id, now)
    found = queue.places(session, agent_id)
    if not found:
        return
    found = [_present(session, place, now, records) if place.row.state in ORDERED else place for place in found]
    for place in queue.awaited(session, found, now, records):
        if _order(session, place, agent_id, now, records):
            return


def _present(session: Session, place: Place, now: int, records: Records) -> Place:
    """A device with an order: follows its directive, which may have ended since, and withdraws that of a stopped rollout."""
    place = queue.locked(session, place)
    row, agent_id = place.row, place.row.device_id
    directive = None if row.number is None else session.get(UpdateDirective, (agent_id, row.number))
    if directive is not None:
        _follow(session, place.rollout, row, directive, now, records)
    if row.state == Device.ORDERED and place.rollout.state in (State.STOPPED, State.ROLLED_BACK):
        counting = directives.counting(session, agent_id)
        if counting is not None and counting.number == row.number:
            number = directives.take_back(session, agent_id, now).number
            ids = {"agent": agent_id, "number": row.number, "by": number, "rollout": row.rollout_id}
            records.add("server", "update.withdrawn", "ok", now, **ids)
        turns.move(place.rollout, row, DeviceEvent.LEAVE_OUT, STOPPED, now, records)
    return place


def _follow(
    session: Session, rollout: Rollout, row: RolloutDevice, directive: UpdateDirective, now: int, records: Records
) -> None:
    state = DirectiveState(directive.state)
    event, detail = of_directive(state, directive.detail), directive.detail
    if event is None:
        return
    if row.state == Device.ORDERED and state is DirectiveState.EXPIRED:
        if row.deadline is not None and directive.not_after < row.deadline:
            event, detail = DeviceEvent.POSTPONE, ""
        else:
            detail = _ENDED
    turns.move(rollout, row, event, detail, now, records)


def _order(session: Session, place: Place, agent_id: str, now: int, records: Records) -> bool:
    """Orders a device what its rollout wants; False if it cannot be ordered that now, or is done with the rollout."""
    row, rollout, policy = place.row, place.rollout, policy_of(place.rollout)
    state = directives.updating(session, agent_id)
    if state.paused_at is not None or directives.all_paused(session):
        queue.waits(row, "updates of the agent are paused", now)
        return False
    counting = directives.counting(session, agent_id)
    if counting is not None and counting.withdraws is None:
        queue.waits(row, f"directive {counting.number} for {counting.path} counts", now)
        return False
    if state.reported_at is None:
        return False
    device = ensure_agent(session, agent_id, now)
    reported = next((each for each in directives.running_of(state) if each.product == rollout.product), None)
    running = None if reported is None else Running(reported.version, reported.build_id)
    target = queue.judged(session, place, state.hardware or device.hardware, running, now, records)
    if target is None:
        return False
    freeze = next_freeze(policy, now)
    ends = now + policy.ordered
    order = Order(
        target.package.path, now, ends if freeze is None else min(ends, freeze), max(0, queue.notice_until(rollout) - now),
        window_of(policy, device.zone), target.downgrade, policy.candidate or target.downgrade, rollout=rollout.id,
    )  # fmt: skip
    return _make(session, place, target, order, running, now, records)


def _make(
    session: Session, place: Place, target: Target, order: Order, running: Running | None, now: int, records: Records
) -> bool:
    agent_id = place.row.device_id
    try:
        directive = directives.make(session, agent_id, order, now)
    except (Conflict, Invalid, NotFound) as problem:
        turns.move(place.rollout, place.row, DeviceEvent.LEAVE_OUT, str(problem), now, records)
        return False
    queue.ordered(session, place, directive.number, running, now, records)
    fields = {
        "target": directive.path, "version": directive.version, "build": directive.build_id,
        "downgrade": target.downgrade, "rollout": place.rollout.id,
    }  # fmt: skip
    records.add("server", "update.assigned", "ok", now, agent=agent_id, number=directive.number, **fields)
    return True
