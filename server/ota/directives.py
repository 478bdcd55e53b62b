"""Keeps what agents are ordered to install, gives it to them, and notes what they report (`contracts.contact.updates`).

One directive of an agent counts: the newest, as long as its state is one of `OPEN`. Its number is above every number that the
agent has named and at least the time, so none comes twice, also if the registry was restored from a backup. Where an agent
knows a later directive than the registry has, what the registry has does not count any more.
"""

import json
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET
from sqlalchemy import select
from sqlalchemy.orm import Session

from common.plain import msgspec_text
from common.statetable import UnknownTransition
from contracts.contact.updates import Outcome, RunningVersion, UpdatesRequest
from contracts.directive import MAX_DIRECTIVE_CHARS, DeploymentWindow, Directive
from server.agents.registry import ACTIVE, enrolled
from server.base.errors import Conflict, Invalid, NotFound
from server.keys.keyring import Keyring
from server.registry import audit, events
from server.registry.models.core import Setting
from server.registry.models.updates import UpdateAgent, UpdateDirective, UpdatePackage
from updatetrust.version import MalformedVersion, Version

from .directive_states import DIRECTIVE_STATES, EVENT_OF, OPEN, Event, State
from .words import CANDIDATE, DAY_S, PACKAGE_ROLES

NOTICE_S = 2 * DAY_S
"""How long an update is announced before it begins, unless an operator says otherwise (OT-02)."""
LASTS_S = 30 * DAY_S
"""How long a directive may be executed, unless an operator says otherwise."""
MAX_LASTS_S = 366 * DAY_S
PAUSED = "updates.paused"
"""The setting that pauses the updates of all agents; its value is the time since when."""
_HEADER_CHARS = 400
"""Header, signature and dots of a directive, at most."""
_TOLD = {
    State.PROVED: "ok",
    State.INSTALLED: "ok",
    State.ROLLED_BACK: "failed",
    State.REFUSED: "refused",
    State.LOCKED: "alert",
}
"""The outcomes that audit and feed have."""


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator orders for an agent. Times are seconds since 1970 UTC.

    Attributes:
        path: of the package in the repository.
        not_before: it is not executed earlier; None means at once.
        not_after: it is not executed later; None for `LASTS_S` after `not_before`.
        notice: seconds from now for which it is only announced, at most for as long as it lasts.
        window: when the installation may begin; None leaves that to the agent.
        downgrade: whether the version may be lower than the one that runs.
        candidate: whether it may be a package on trial.
        replace: whether it may take the place of a directive that still counts.
        rollout: the rollout that it belongs to; empty for none.
    """

    path: str
    not_before: int | None = None
    not_after: int | None = None
    notice: int = NOTICE_S
    window: DeploymentWindow | None = None
    downgrade: bool = False
    candidate: bool = False
    replace: bool = False
    rollout: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """What an agent is answered, as in `contracts.contact.updates.UpdatesReply`."""

    directive: str | None
    acknowledged: tuple[int, ...]
    paused: bool


def assign(session: Session, agent_id: str, order: Order, now: int) -> UpdateDirective:
    """Orders an agent to install a package.

    Args:
        session: of a writing transaction.
        agent_id: the agent.
        order: what it is to install, and when.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such agent or package.
        Conflict: the agent is not active, another directive counts, the package is on trial or for other hardware, or it is a
            downgrade.
        Invalid: the times do not fit together.
    """
    package = require_fitting(session, agent_id, order)
    state = _agent(session, agent_id)
    _require_upward(state, package, order)
    _expire(session, agent_id, now)
    present = _counting(session, agent_id)
    if present is not None and not order.replace and present.withdraws is None:
        raise Conflict(
            f"directive {present.number} for {present.path} still counts: withdraw it with 'ota withdraw', or give --replace"
        )
    not_before = now if order.not_before is None else order.not_before
    not_after = not_before + LASTS_S if order.not_after is None else order.not_after
    notice = min(now + order.notice, not_after)
    if not_after <= now or not_after - now > MAX_LASTS_S:
        raise Invalid(f"a directive ends later than now, and within {MAX_LASTS_S // DAY_S} days")
    row = UpdateDirective(
        agent_id=agent_id, number=_next_number(state, now), product=package.product, path=package.path,
        sha256=package.sha256, length=package.length, version=package.version, build_id=package.build_id,
        rollout=order.rollout, not_before=not_before, not_after=not_after, notice_until=notice,
        window=None if order.window is None else msgspec.json.encode(order.window).decode(), downgrade=order.downgrade,
        withdraws=None, state=State.ORDERED.value, detail="", created_at=now, updated_at=now,
    )  # fmt: skip
    if len(msgspec.json.encode(_content(row))) * 4 // 3 + _HEADER_CHARS > MAX_DIRECTIVE_CHARS:
        raise Invalid("the directive would be too long: give its package a shorter name")
    if present is not None:
        _step(present, Event.SUPERSEDE, f"directive {row.number} counts", now)
    session.add(row)
    fields = {"target": row.path, "version": row.version, "build": row.build_id, "downgrade": row.downgrade}
    audit.record(session, audit.ADMIN, "update.assigned", "ok", now, agent=agent_id, number=row.number, **fields)
    return row


def require_fitting(session: Session, agent_id: str, order: Order) -> UpdatePackage:
    """The package that an agent may be ordered to install, as far as agent and package say.

    Raises:
        NotFound: there is no such agent or package.
        Conflict: the agent is not active, or the package is on trial or for other hardware.
    """
    agent = enrolled(session, agent_id)
    if agent.status != ACTIVE:
        raise Conflict(f"agent {agent_id!r} is {agent.status}, and is given no directive")
    package = session.get(UpdatePackage, order.path)
    if package is None or package.role not in PACKAGE_ROLES:
        raise NotFound(f"the repository has no package {order.path!r}; 'license-server ota packages' lists them")
    if package.role == CANDIDATE and not order.candidate:
        raise Conflict(f"{order.path} is a candidate: promote it, or give --candidate to try it on this machine")
    state = session.get(UpdateAgent, agent_id)
    if state is not None:
        _require_hardware(state, package)
    return package


def withdraw(session: Session, agent_id: str, now: int) -> UpdateDirective:
    """Takes back the directive that counts. An agent that has begun to install it is told to stop where it still can.

    Returns the directive that withdraws it. Raises NotFound if none counts.
    """
    enrolled(session, agent_id)
    _expire(session, agent_id, now)
    present = _counting(session, agent_id)
    if present is None or present.withdraws is not None:
        raise NotFound(f"no directive counts for agent {agent_id!r}; 'license-server ota status' shows what was ordered")
    members = {column.key: getattr(present, column.key) for column in UpdateDirective.__table__.columns}
    number = _next_number(_agent(session, agent_id), now)
    changed = {"number": number, "withdraws": present.number, "state": State.ORDERED.value, "detail": ""}
    row = UpdateDirective(**(members | changed | {"created_at": now, "updated_at": now}))
    _step(present, Event.WITHDRAW, f"by directive {number}", now)
    session.add(row)
    audit.record(session, audit.ADMIN, "update.withdrawn", "ok", now, agent=agent_id, number=present.number, by=number)
    return row


def signed_for(session: Session, keyring: Keyring, agent_id: str, path: str, now: int) -> str:
    """The directive that counts for an agent, signed, for who carries it to the machine.

    Raises:
        NotFound: there is no such agent.
        Conflict: no directive counts for it, or one for another package.
        ClockNotTrusted: nothing must be signed now.
    """
    return keyring.sign_directive(_content(require_ordered(session, agent_id, path, now)))


def require_ordered(session: Session, agent_id: str, path: str, now: int) -> UpdateDirective:
    """The directive that counts for an agent, which must order this package. Raises NotFound, Conflict as `signed_for`."""
    enrolled(session, agent_id)
    _expire(session, agent_id, now)
    present = _counting(session, agent_id)
    if present is None or present.withdraws is not None or present.path != path:
        ordered = "nothing" if present is None or present.withdraws is not None else present.path
        raise Conflict(f"agent {agent_id!r} is ordered to install {ordered}: use 'license-server ota assign {agent_id} {path}'")
    return present


def pause(session: Session, agent_id: str | None, now: int, *, paused: bool) -> None:
    """Pauses the updates of one agent, or of all, or lets them go on.

    Args:
        session: of a writing transaction.
        agent_id: the agent; None for all. Who is paused alone stays so when all go on.
        now: seconds since 1970 UTC.
        paused: whether they pause.

    Raises:
        NotFound: there is no such agent.
    """
    if agent_id is None:
        row = session.get(Setting, PAUSED, with_for_update=True)
        if paused and row is None:
            session.add(Setting(name=PAUSED, value=str(now)))
        elif not paused and row is not None:
            session.delete(row)
    else:
        enrolled(session, agent_id)
        _agent(session, agent_id).paused_at = now if paused else None
    whose = {} if agent_id is None else {"agent": agent_id}
    audit.record(session, audit.ADMIN, "updates.paused" if paused else "updates.resumed", "ok", now, **whose)


class Directives:
    """Answers agents. Works in the transaction of the session that it is given.

    Args:
        keyring: signs directives.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def contact(self, session: Session, agent_id: str, asked: UpdatesRequest, now: int) -> Given:
        """Notes what an agent reports, and returns what it is ordered to do.

        Args:
            session: of a writing transaction that has locked the agent.
            agent_id: the agent.
            asked: its request.
            now: seconds since 1970 UTC.

        Raises:
            ClockNotTrusted: nothing must be signed now.
        """
        state = _agent(session, agent_id)
        state.running = msgspec.json.encode(asked.running).decode()
        state.reported_at, state.known = now, max(state.known, asked.directive)
        if asked.hardware is not UNSET:
            state.hardware = asked.hardware
        for outcome in asked.outcomes:
            _note(session, agent_id, outcome, now)
        running = {(each.product, each.build_id, each.version) for each in asked.running}
        for row in session.scalars(_of(agent_id).where(UpdateDirective.state.in_((*OPEN, State.INSTALLED)))):
            if row.withdraws is None and (row.product, row.build_id, row.version) in running:
                _happens(session, row, Event.RUN, "", now)
        _expire(session, agent_id, now)
        present = _counting(session, agent_id)
        if present is not None and asked.directive >= present.number:
            _meet(session, present, asked.directive, now)
            present = _counting(session, agent_id)
        paused = state.paused_at is not None or all_paused(session)
        signed = None if present is None else self._keyring.sign_directive(_content(present))
        return Given(signed, tuple(each.number for each in asked.outcomes), paused)


def _meet(session: Session, present: UpdateDirective, known: int, now: int) -> None:
    """The agent knows a number that is not below that of the directive that counts."""
    if known > present.number:
        _step(present, Event.SUPERSEDE, f"the agent knows directive {known}, which this registry has lost", now)
        ids = {"agent": present.agent_id, "number": present.number, "known": known}
        audit.record(session, f"agent {present.agent_id}", "update.lost", "alert", now, **ids)
    elif present.withdraws is not None:
        _step(present, Event.END, "the agent knows", now)
    elif present.state == State.ORDERED:
        _step(present, Event.FETCH, "", now)


def _note(session: Session, agent_id: str, outcome: Outcome, now: int) -> None:
    row = session.get(UpdateDirective, (agent_id, outcome.number))
    if row is not None and row.withdraws is None:
        _happens(session, row, EVENT_OF[outcome.state], outcome.detail, now)


def _happens(session: Session, row: UpdateDirective, event: Event, detail: str, now: int) -> None:
    """What an agent reports. What a directive in its state cannot do is passed over: reports may come late, or twice."""
    before = State(row.state)
    try:
        after = DIRECTIVE_STATES.step(before, event)
    except UnknownTransition:
        return
    row.state, row.updated_at = after.value, now
    if after is not before or detail:
        row.detail = detail  # what was said of an earlier state says nothing of this one
    if after is not before and after in _TOLD:
        ids: dict[str, str | int] = {"agent": row.agent_id, "number": row.number}
        name = f"update_{after.value.replace('-', '_')}"
        fields = {"target": row.path, "build": row.build_id}
        audit.record(session, f"agent {row.agent_id}", f"agent.{name}", _TOLD[after], now, **ids, **fields)
        events.emit(session, f"agent.{name}", now, **ids)


def _step(row: UpdateDirective, event: Event, detail: str, now: int) -> None:
    row.state, row.updated_at = DIRECTIVE_STATES.step(State(row.state), event).value, now
    row.detail = detail or row.detail


def _content(row: UpdateDirective) -> Directive:
    window = None if row.window is None else msgspec.json.decode(row.window.encode(), type=DeploymentWindow)
    try:
        return Directive(
            number=row.number, agent_id=row.agent_id, product=row.product, target=row.path, sha256=row.sha256,
            length=row.length, version=row.version, build_id=row.build_id, rollout=row.rollout, not_before=row.not_before,
            not_after=row.not_after, window=window, notice_until=row.notice_until, downgrade=row.downgrade,
            withdraws=row.withdraws,
        )  # fmt: skip
    except ValueError as problem:
        raise Invalid(f"the order does not fit together: {msgspec_text(str(problem))}") from None


def _require_hardware(state: UpdateAgent, package: UpdatePackage) -> None:
    """What an agent has not said is not known: its machine judges by root's own file."""
    if state.hardware is not None and state.hardware not in hardware_of(package):
        raise Conflict(
            f"{package.path} is for {', '.join(hardware_of(package))}, and agent {state.agent_id!r} is a {state.hardware}: it "
            "would refuse it; 'license-server ota packages' shows what each package is for"
        )


def _require_upward(state: UpdateAgent, package: UpdatePackage, order: Order) -> None:
    if order.downgrade:
        return
    for each in running_of(state):
        try:
            lower = each.product == package.product and Version.parse(package.version) < Version.parse(each.version)
        except MalformedVersion:
            continue
        if lower:
            raise Conflict(
                f"agent {state.agent_id!r} runs {each.product} {each.version}, and {package.version} is lower: give "
                "--downgrade, which a second person must approve"
            )


def _of(agent_id: str) -> Any:
    return select(UpdateDirective).where(UpdateDirective.agent_id == agent_id)


def _counting(session: Session, agent_id: str) -> UpdateDirective | None:
    session.flush()
    newest: UpdateDirective | None = session.scalars(_of(agent_id).order_by(UpdateDirective.number.desc()).limit(1)).first()
    return newest if newest is not None and newest.state in OPEN else None


def _expire(session: Session, agent_id: str, now: int) -> None:
    session.flush()
    for row in session.scalars(_of(agent_id).where(UpdateDirective.state.in_(OPEN), UpdateDirective.not_after <= now)):
        _step(row, Event.END, "", now)


def _agent(session: Session, agent_id: str) -> UpdateAgent:
    """What is known of an agent's updates. The caller has locked the agent."""
    row = session.get(UpdateAgent, agent_id)
    if row is None:
        row = UpdateAgent(agent_id=agent_id, number=0, known=0, running="[]", reported_at=None, paused_at=None, hardware=None)
        session.add(row)
    return row


def _next_number(state: UpdateAgent, now: int) -> int:
    state.number = max(state.number + 1, state.known + 1, now)
    return state.number


# Read


def running_of(row: UpdateAgent) -> list[RunningVersion]:
    """What an agent last reported that it runs."""
    return msgspec.json.decode(row.running.encode(), type=list[RunningVersion])


def known_of(session: Session, agent_id: str) -> UpdateAgent | None:
    """What is known of an agent's updates; None before its first report or order.

    Raises:
        NotFound: there is no such agent.
    """
    enrolled(session, agent_id, lock=False)
    return session.get(UpdateAgent, agent_id)


def listed(session: Session, agent_id: str, limit: int) -> list[UpdateDirective]:
    """The directives of an agent, the newest first."""
    return list(session.scalars(_of(agent_id).order_by(UpdateDirective.number.desc()).limit(limit)))


def packages_listed(session: Session, after: str, limit: int, product: str | None = None) -> list[UpdatePackage]:
    """Packages that are published, or were, by their path."""
    query = select(UpdatePackage).where(UpdatePackage.path > after).order_by(UpdatePackage.path).limit(limit)
    return list(session.scalars(query if product is None else query.where(UpdatePackage.product == product)))


def hardware_of(row: UpdatePackage) -> tuple[str, ...]:
    """The kinds of machine that a package is for."""
    return tuple(json.loads(row.hardware))


def all_paused(session: Session) -> bool:
    """Whether the updates of all agents are paused."""
    return session.get(Setting, PAUSED) is not None
