"""Changes licenses that exist: suspends, renews, upgrades, transfers them. `license_states` has the rules.

None of it makes a token. An agent learns of a change at its next contact, and gets a new token then; one of release 0.1.0
goes by what it holds until that ends, or until it is handed what `reissue` prints. Each function locks the license and its
agents, in the order of their ids, until the transaction ends.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.agents.registry import announces_sync, enrolled
from server.base.errors import Conflict, Invalid
from server.licensing.sales import seats
from server.licensing.sales.orders import checked_claims, terms_of
from server.licensing.sales.products import policy, sold_by
from server.licensing.sales.rows import expect
from server.licensing.states import trials
from server.licensing.states.changes import left
from server.licensing.states.history import changed
from server.licensing.states.license_states import Event, locked, receiving, stepped
from server.registry import audit
from server.registry.models.core import Agent, License


@dataclass(frozen=True, slots=True)
class Moved:
    """Where a license went.

    Attributes:
        license_id: the license.
        was: the agent that had it; None if none did.
        agent_id: the agent that has it; None if none does.
    """

    license_id: str
    was: str | None
    agent_id: str | None


def suspend(session: Session, license_id: str, now: int, revision: int | None = None) -> None:
    """Suspends a license until it is reinstated; its time runs on.

    Args:
        session: of a writing transaction.
        license_id: the license.
        now: seconds since 1970 UTC.
        revision: that the caller has read; None if they do not care.

    Raises:
        NotFound: there is no such license.
        Conflict: its state or its revision does not allow it.
    """
    row = _opened(session, license_id, Event.SUSPENDED, now, revision)
    row.suspended_at = now
    seats.follow(session, row, now)
    _changed(session, row, Event.SUSPENDED, now)


def reinstate(session: Session, license_id: str, now: int, revision: int | None = None) -> None:
    """Ends the suspension of a license. Args and errors as for `suspend`."""
    row = _opened(session, license_id, Event.REINSTATED, now, revision)
    row.suspended_at = None
    seats.follow(session, row, now)
    _changed(session, row, Event.REINSTATED, now)


def renew(
    session: Session,
    license_id: str,
    now: int,
    *,
    expires: int | None = None,
    duration: int | None = None,
    revision: int | None = None,
) -> int:
    """Gives a license a later end, and returns that.

    Args:
        session: of a writing transaction.
        license_id: the license; also one that has expired.
        now: seconds since 1970 UTC.
        expires: the new end.
        duration: seconds behind its present end, or behind now if it has expired; None for its policy's.
        revision: as for `suspend`.

    Raises:
        NotFound: there is no such license.
        Conflict: its state or revision does not allow it, or it is a trial.
        Invalid: the new end is not later, or nothing says when it is.
    """
    row, _agent = locked(session, license_id)
    expect(row, revision, f"license {license_id!r}")
    event = Event.EXTENDED if row.agent_id is None and not row.floating else Event.RENEWED
    stepped(row, event, now)
    by = None if row.policy_id is None else policy(session, row.policy_id)
    if by is not None and by.trial:
        raise Conflict(f"license {license_id!r} is a trial, which cannot be renewed: upgrade it to another policy")
    end = row.expires_at or json.loads(row.claims)["exp"]
    if expires is None:
        lasts = duration or (None if by is None else by.duration_s)
        if lasts is None:
            raise Invalid(f"until when? License {license_id!r} has no policy with a duration: give --expires")
        expires = max(end, now) + lasts
    if expires <= max(end, now):
        raise Invalid(f"license {license_id!r} ends later than that, or the new end has passed already: give a later one")
    _set_claims(row, now, exp=expires)
    _changed(session, row, event, now, expires=expires, was_until=end)
    return expires


def upgrade(
    session: Session,
    license_id: str,
    now: int,
    *,
    to: str | None = None,
    features: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    metadata: Mapping[str, str] | None = None,
    revision: int | None = None,
) -> tuple[str, ...]:
    """Gives a license the terms of another policy, and other features; returns the features that it has then.

    Its end stays, but for a trial that becomes a sale: that begins a period of the new policy.

    Args:
        session: of a writing transaction.
        license_id: the license.
        now: seconds since 1970 UTC.
        to: the policy whose features and metadata it gets in place of its own; None keeps those.
        features: that it gets besides.
        without: features that it loses.
        metadata: entries that are set besides.
        revision: as for `suspend`.

    Raises:
        NotFound: there is no such license or policy.
        Conflict: state or revision do not allow it, or the policy is retired, a trial, or of another product.
        Invalid: the result is out of bounds.
    """
    row, _agent = locked(session, license_id)
    expect(row, revision, f"license {license_id!r}")
    stepped(row, Event.UPGRADED, now)
    claims = json.loads(row.claims)
    was = None if row.policy_id is None else policy(session, row.policy_id)
    held, entries, expires = tuple(claims["features"]), dict(claims["metadata"]), claims["exp"]
    if to is not None:
        by = sold_by(session, to)
        if by.trial:
            raise Conflict(f"policy {to!r} is a trial: no license becomes one")
        if row.product_id not in (None, by.product_id):
            raise Conflict(f"policy {to!r} is for product {by.product_id!r}, license {license_id!r} for {row.product_id!r}")
        held, entries = terms_of(session, by, (), {})
        row.policy_id, row.product_id = by.id, by.product_id
        if was is not None and was.trial:
            if by.duration_s is None:
                raise Conflict(f"policy {to!r} has no duration, so nothing says when the sold license ends: choose another one")
            expires = now + by.duration_s
    kept = tuple(name for name in (*held, *features) if name not in without)
    kept, entries = terms_of(session, None, kept, {**entries, **(metadata or {})})
    _set_claims(row, now, features=list(kept), metadata=entries, exp=expires)
    _changed(session, row, Event.UPGRADED, now, policy=row.policy_id, expires=expires)
    return kept


def assign(session: Session, license_id: str, agent_id: str, now: int, revision: int | None = None) -> Moved:
    """Gives a license that is on no machine to an agent. Args and errors as for `transfer`."""
    return _move(session, license_id, agent_id, Event.ASSIGNED, now, revision)


def transfer(session: Session, license_id: str, agent_id: str, now: int, revision: int | None = None) -> Moved:
    """Moves a license to another agent. A suspended one stays suspended, an expired one expired.

    Args:
        session: of a writing transaction.
        license_id: the license.
        agent_id: the agent that gets it.
        now: seconds since 1970 UTC.
        revision: as for `suspend`.

    Raises:
        NotFound: there is no such license or agent.
        Conflict: state or revision do not allow it, the agent is not active, or its machine has had this trial.
    """
    return _move(session, license_id, agent_id, Event.TRANSFERRED, now, revision)


def release(session: Session, license_id: str, now: int, revision: int | None = None) -> Moved:
    """Takes a license from its machine, so that it can be assigned to another one later.

    Args and errors as for `suspend`; a trial belongs to its machine, and cannot be released.
    """
    row = _opened(session, license_id, Event.RELEASED, now, revision)
    if row.floating:
        raise _floats(license_id)
    if row.policy_id is not None and policy(session, row.policy_id).trial:
        raise Conflict(f"license {license_id!r} is a trial, which belongs to its machine")
    was = _leave(session, row, None, now)
    _changed(session, row, Event.RELEASED, now, agent=was)
    return Moved(license_id, was, None)


def move_all(session: Session, old: Agent, new: Agent, now: int) -> list[Moved]:
    """Moves all licenses of an agent that are not revoked to another one, in the order of their ids. The audit is the caller's.

    The new agent is at the site of the old one, if it is at none. Seats stay: the old machine may use its own until it ends.

    Args:
        session: of a writing transaction that has locked both agents.
        old: the agent that had them.
        new: the agent that gets them; active.
        now: seconds since 1970 UTC.

    Raises:
        Conflict: the new machine has had a trial that is among them.
    """
    if new.site_id is None:
        new.site_id = old.site_id
    mine = License.agent_id == old.id, License.revoked_at.is_(None), License.seat_of.is_(None)
    query = select(License).where(*mine).order_by(License.jti)
    rows = list(session.scalars(query.with_for_update().execution_options(populate_existing=True)))
    return [_to(session, row, new, Event.TRANSFERRED, now) for row in rows]


def record_moves(session: Session, moves: list[Moved], now: int) -> None:
    """Records moved licenses in the audit, when the transaction needs no other lock any more."""
    for moved in moves:
        event = "license.assigned" if moved.was is None else "license.transferred"
        audit.record(session, audit.ADMIN, event, "ok", now, license=moved.license_id, agent=moved.agent_id, was=moved.was)


def is_told(session: Session, agent_id: str) -> bool:
    """Whether an agent has said that it asks for the changes of its licenses; one of release 0.1.0 does not."""
    return announces_sync(enrolled(session, agent_id, lock=False).capabilities)


def _move(session: Session, license_id: str, agent_id: str, event: Event, now: int, revision: int | None) -> Moved:
    # Looked at first too: a floating one is locked behind the agents that have seats of it, and this locks another one here.
    if session.scalar(select(License.floating).where(License.jti == license_id)):
        raise _floats(license_id)
    owner = session.scalar(select(License.agent_id).where(License.jti == license_id))
    # In the order of their ids: two licenses may go in opposite directions at once.
    for each in sorted({agent_id, owner or agent_id}):
        enrolled(session, each)
    row, _agent = locked(session, license_id)
    if row.floating:
        raise _floats(license_id)
    expect(row, revision, f"license {license_id!r}")
    stepped(row, event, now)
    if row.agent_id == agent_id:
        raise Conflict(f"license {license_id!r} is on agent {agent_id!r} already")
    moved = _to(session, row, receiving(session, agent_id), event, now)
    record_moves(session, [moved], now)
    return moved


def _floats(license_id: str) -> Conflict:
    return Conflict(f"license {license_id!r} is a floating one: tills of its site take seats of it; it goes on no machine")


def _to(session: Session, row: License, agent: Agent, event: Event, now: int) -> Moved:
    by = None if row.policy_id is None else policy(session, row.policy_id)
    if by is not None and by.trial:
        trials.begin(session, agent, by.product_id, row.jti, now, exists=True)
    was = _leave(session, row, agent.id, now)
    changed(session, row, event, now, agent=agent.id, was=was)
    return Moved(row.jti, was, agent.id)


def _leave(session: Session, row: License, agent_id: str | None, now: int) -> str | None:
    """Takes a license from its agent, which learns of it at its next contact, and gives it to another one or to none."""
    was, row.agent_id, row.secret_version = row.agent_id, agent_id, None
    _set_claims(row, now, aud=agent_id)
    if was is not None and row.expires_at is not None:
        left(session, was, row.jti, row.expires_at, now)
    return was


def _opened(session: Session, license_id: str, event: Event, now: int, revision: int | None) -> License:
    row, _agent = locked(session, license_id)
    expect(row, revision, f"license {license_id!r}")
    stepped(row, event, now)
    return row


def _set_claims(row: License, now: int, **claims: object) -> None:
    held = json.loads(row.claims)
    new = checked_claims({**held, **claims, "iat": max(now, held["iat"])})
    row.claims, row.expires_at = json.dumps(new), new["exp"]


def _changed(session: Session, row: License, event: Event, now: int, **ids: str | int | None) -> None:
    about = {"agent": row.agent_id, **ids}
    changed(session, row, event, now, **about)
    given = {name: value for name, value in about.items() if value is not None}
    audit.record(session, audit.ADMIN, f"license.{event}", "ok", now, license=row.jti, **given)
