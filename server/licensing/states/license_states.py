"""Declares the states of a license, and the transitions between them; locks a license that is to change.

UNASSIGNED   sold, and on no machine yet
ACTIVE       on a machine, between issue and end, or shared by the tills of a site; it may begin later
SUSPENDED    refused until it is reinstated; its time runs on
EXPIRED      its end has passed; a renewal brings it back
REVOKED      ended for good

The registry stores what has happened (a machine, times of revocation and suspension, the end), and `state_of` reads the state
from that, so that the end of a license needs nobody to write it down.
"""

from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from common.statetable import Table, UnknownTransition
from server.agents.registry import ACTIVE, enrolled
from server.base.errors import Conflict, NotFound
from server.registry.agentcounts import shown_status
from server.registry.models.core import Agent, License
from server.registry.models.seats import Seat


class State(StrEnum):
    """State of a license."""

    UNASSIGNED = "unassigned"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Event(StrEnum):
    """What can happen to a license."""

    ASSIGNED = "assigned"
    """A machine gets it."""
    TRANSFERRED = "transferred"
    """Another machine gets it."""
    SHARED = "shared"
    """It becomes a floating license: the machines of its site take seats of it."""
    RELEASED = "released"
    """Its machine no longer has it."""
    SUSPENDED = "suspended"
    REINSTATED = "reinstated"
    RENEWED = "renewed"
    """A license on a machine gets a later end."""
    EXTENDED = "extended"
    """A license on no machine gets a later end."""
    UPGRADED = "upgraded"
    """Its policy or features change."""
    EXPIRED = "expired"
    """Its end passes."""
    REVOKED = "revoked"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.UNASSIGNED: {
        Event.ASSIGNED: State.ACTIVE,
        Event.SHARED: State.ACTIVE,
        Event.EXTENDED: State.UNASSIGNED,
        Event.UPGRADED: State.UNASSIGNED,
        Event.EXPIRED: State.EXPIRED,
        Event.REVOKED: State.REVOKED,
    },
    State.ACTIVE: {
        Event.TRANSFERRED: State.ACTIVE,
        Event.RELEASED: State.UNASSIGNED,
        Event.SUSPENDED: State.SUSPENDED,
        Event.RENEWED: State.ACTIVE,
        Event.UPGRADED: State.ACTIVE,
        Event.EXPIRED: State.EXPIRED,
        Event.REVOKED: State.REVOKED,
    },
    State.SUSPENDED: {
        Event.TRANSFERRED: State.SUSPENDED,
        Event.REINSTATED: State.ACTIVE,
        Event.RENEWED: State.SUSPENDED,
        Event.UPGRADED: State.SUSPENDED,
        Event.EXPIRED: State.SUSPENDED,
        Event.REVOKED: State.REVOKED,
    },
    State.EXPIRED: {
        Event.TRANSFERRED: State.EXPIRED,
        Event.RENEWED: State.ACTIVE,
        Event.EXTENDED: State.UNASSIGNED,
        Event.REVOKED: State.REVOKED,
    },
    State.REVOKED: {},
}
step = Table("a license", TRANSITIONS).step


def state_of(row: License, now: int) -> State:
    """The state of a license at a time, seconds since 1970 UTC."""
    if row.revoked_at is not None:
        return State.REVOKED
    if row.suspended_at is not None:
        return State.SUSPENDED
    if row.expires_at is not None and now >= row.expires_at:
        return State.EXPIRED
    return State.UNASSIGNED if row.agent_id is None and not row.floating else State.ACTIVE


_FIRST = {
    State.UNASSIGNED: "'license-server licenses assign' gives it a machine",
    State.ACTIVE: "'license-server licenses show' shows it",
    State.SUSPENDED: "'license-server licenses reinstate' ends that",
    State.EXPIRED: "'license-server licenses renew' brings it back",
    State.REVOKED: "a revocation is for good, so issue another license",
}


def stepped(row: License, event: Event, now: int) -> State:
    """The state of a license after an event, by the table. Changes nothing.

    Raises:
        Conflict: the event cannot happen to it in its state; the text says what can be done.
    """
    state = state_of(row, now)
    try:
        return step(state, event)
    except UnknownTransition:
        said = f"license {row.jti!r} is {state.value}, so it cannot be {event.value}"
        raise Conflict(f"{said}: {_FIRST[state]}") from None


def locked(session: Session, license_id: str) -> tuple[License, Agent | None]:
    """A license and the agent that has it, locked until the transaction ends; and the agents that have seats of it.

    The agents come before the licenses: an agent's own requests lock in this order.

    Raises:
        NotFound: there is no such license.
        Conflict: it went to another agent at this moment; or it is a seat, which is no license that is changed by itself.
    """
    known = session.execute(select(License.agent_id).where(License.jti == license_id)).first()
    owner = None if known is None else known[0]
    holders = _holders(session, license_id)
    for each in sorted(holders):
        session.get(Agent, each, with_for_update=True, populate_existing=True)
    agent = None if owner is None else enrolled(session, owner)
    row = session.get(License, license_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound(f"there is no license {license_id!r}; 'license-server licenses list' lists them")
    if row.agent_id != owner:
        raise Conflict(f"license {license_id!r} went to another agent at this moment: run the command again")
    if row.seat_of is not None:
        raise Conflict(f"{license_id!r} is a seat: change license {row.seat_of!r}, or free it with 'license-server seats free'")
    if not _holders(session, license_id) <= holders:
        raise Conflict(f"an agent took a seat of license {license_id!r} at this moment: run the command again")
    return row, agent


def _holders(session: Session, license_id: str) -> set[str]:
    return set(session.scalars(select(Seat.agent_id).where(Seat.license_id == license_id)))


def receiving(session: Session, agent_id: str) -> Agent:
    """An agent that may get licenses, locked until the transaction ends. Raises NotFound and Conflict."""
    agent = enrolled(session, agent_id)
    if agent.status != ACTIVE:
        status = shown_status(agent.status, agent.retired_at)
        raise Conflict(f"agent {agent_id!r} is {status}; only active agents get licenses")
    return agent
