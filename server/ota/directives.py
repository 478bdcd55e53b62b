"""Keeps what agents are ordered to install. `reports` gives it to them, and notes what they report.

One directive of an agent counts: the newest, as long as its state is one of `OPEN`. Its number is above every number that the
agent has named and at least the time, so none comes twice, also if the registry was restored from a backup. Where an agent
knows a later directive than the registry has, what the registry has does not count any more.
"""

import json
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from common.plain import msgspec_text
from contracts.contact.updates import RunningVersion
from contracts.directive import MAX_DIRECTIVE_CHARS, DeploymentWindow, Directive
from server.agents.registry import ACTIVE, enrolled
from server.base.errors import Conflict, Invalid, NotFound
from server.keys.keyring import Keyring
from server.registry import audit
from server.registry.models.core import Setting
from server.registry.models.updates import UpdateAgent, UpdateDirective, UpdatePackage
from updatetrust.version import MalformedVersion, Version

from .directive_states import DIRECTIVE_STATES, OPEN, Event, State
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


def assign(session: Session, agent_id: str, order: Order, now: int) -> UpdateDirective:
    """Orders an agent to install a package, and records that. Raises as `make`."""
    row = make(session, agent_id, order, now)
    fields = {"target": row.path, "version": row.version, "build": row.build_id, "downgrade": row.downgrade}
    audit.record(session, audit.ADMIN, "update.assigned", "ok", now, agent=agent_id, number=row.number, **fields)
    return row


def make(session: Session, agent_id: str, order: Order, now: int) -> UpdateDirective:
    """Orders an agent to install a package. The caller records that.

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
    state = updating(session, agent_id)
    _require_upward(state, package, order)
    expire(session, agent_id, now)
    present = counting(session, agent_id)
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
    if len(msgspec.json.encode(content_of(row))) * 4 // 3 + _HEADER_CHARS > MAX_DIRECTIVE_CHARS:
        raise Invalid("the directive would be too long: give its package a shorter name")
    if present is not None:
        step_on(present, Event.SUPERSEDE, f"directive {row.number} counts", now)
    session.add(row)
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
    """Takes back the directive that counts, and records that. An agent that has begun is told to stop where it still can.

    Returns the directive that withdraws it. Raises NotFound if none counts.
    """
    row = take_back(session, agent_id, now)
    audit.record(session, audit.ADMIN, "update.withdrawn", "ok", now, agent=agent_id, number=row.withdraws, by=row.number)
    return row


def take_back(session: Session, agent_id: str, now: int) -> UpdateDirective:
    """Takes back the directive that counts, as `withdraw`. The caller records that."""
    enrolled(session, agent_id)
    expire(session, agent_id, now)
    present = counting(session, agent_id)
    if present is None or present.withdraws is not None:
        raise NotFound(f"no directive counts for agent {agent_id!r}; 'license-server ota status' shows what was ordered")
    members = {column.key: getattr(present, column.key) for column in UpdateDirective.__table__.columns}
    number = _next_number(updating(session, agent_id), now)
    changed = {"number": number, "withdraws": present.number, "state": State.ORDERED.value, "detail": ""}
    row = UpdateDirective(**(members | changed | {"created_at": now, "updated_at": now}))
    step_on(present, Event.WITHDRAW, f"by directive {number}", now)
    session.add(row)
    return row


def signed_for(session: Session, keyring: Keyring, agent_id: str, path: str, now: int) -> str:
    """The directive that counts for an agent, signed, for who carries it to the machine.

    Raises:
        NotFound: there is no such agent.
        Conflict: no directive counts for it, or one for another package.
        ClockNotTrusted: nothing must be signed now.
    """
    return keyring.sign_directive(content_of(require_ordered(session, agent_id, path, now)))


def require_ordered(session: Session, agent_id: str, path: str, now: int) -> UpdateDirective:
    """The directive that counts for an agent, which must order this package. Raises NotFound, Conflict as `signed_for`."""
    enrolled(session, agent_id)
    expire(session, agent_id, now)
    present = counting(session, agent_id)
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
        updating(session, agent_id).paused_at = now if paused else None
    whose = {} if agent_id is None else {"agent": agent_id}
    audit.record(session, audit.ADMIN, "updates.paused" if paused else "updates.resumed", "ok", now, **whose)


def step_on(row: UpdateDirective, event: Event, detail: str, now: int) -> None:
    """Changes the state of a directive. Raises UnknownTransition."""
    row.state, row.updated_at = DIRECTIVE_STATES.step(State(row.state), event).value, now
    row.detail = detail or row.detail


def content_of(row: UpdateDirective) -> Directive:
    """What is signed of a directive. Raises Invalid."""
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


def directives_of(agent_id: str) -> Any:
    """The query for an agent's directives."""
    return select(UpdateDirective).where(UpdateDirective.agent_id == agent_id)


def counting(session: Session, agent_id: str) -> UpdateDirective | None:
    """The directive of an agent that counts; None if none does."""
    session.flush()
    newest: UpdateDirective | None = session.scalars(
        directives_of(agent_id).order_by(UpdateDirective.number.desc()).limit(1)
    ).first()
    return newest if newest is not None and newest.state in OPEN else None


def expire(session: Session, agent_id: str, now: int) -> None:
    """Ends the directives of an agent whose time is over."""
    session.flush()
    for row in session.scalars(
        directives_of(agent_id).where(UpdateDirective.state.in_(OPEN), UpdateDirective.not_after <= now)
    ):
        step_on(row, Event.END, "", now)


def updating(session: Session, agent_id: str) -> UpdateAgent:
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
    return list(session.scalars(directives_of(agent_id).order_by(UpdateDirective.number.desc()).limit(limit)))


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
