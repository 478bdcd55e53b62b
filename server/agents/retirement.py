"""Takes agents out of service: they get nothing any more, and their licenses end. Retention deletes them later.

A retired agent is a revoked one that nobody has to think of: every check that refuses a revoked agent refuses it. Reinstating
it gives back what the registry still has; its certificates stay revoked, so its device must be provisioned again.
"""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry import audit, events
from server.registry.agentcounts import RETIRED, shown_status
from server.registry.dialect import passing_locked
from server.registry.models.core import Agent, License
from server.registry.upkeep.retention import DAY_S, retention

from .registry import ACTIVE, REVOKED, enrolled, revoke_certificates
from .removal import delete_agent

MOST_AGENTS = 2000
"""Retired agents that one run of housekeeping deletes."""


@dataclass(frozen=True, slots=True)
class Retired:
    """An agent that has left service.

    Attributes:
        agent_id: the agent.
        at: since when, seconds since 1970 UTC.
        licenses: how many licenses ended with it: those that were not revoked before.
        kept_days: how long its rows are kept after that.
    """

    agent_id: str
    at: int
    licenses: int
    kept_days: int


def retire(session: Session, agent_id: str, now: int, replaced_by: str | None = None) -> Retired:
    """Takes an agent out of service, in the transaction of the caller. One that is retired already stays as it is.

    Who moves its licenses to another agent does so before, in the same transaction: those that are left end.

    Args:
        session: of a writing transaction.
        agent_id: the agent.
        now: seconds since 1970 UTC.
        replaced_by: the agent that takes its place, for the audit; None if none does.

    Raises:
        RegistryError: there is no such agent, or the one that replaces it is not in service, or is the same.
    """
    # Two that replace each other would wait for each other if each locked its own first.
    for each in sorted({agent_id, replaced_by or agent_id}):
        enrolled(session, each)
    if replaced_by is not None:
        _require_successor(session, agent_id, replaced_by)
    agent = enrolled(session, agent_id)
    if agent.retired_at is None:
        was, agent.status, agent.retired_at, agent.updated_at = agent.status, REVOKED, now, now
        revoke_certificates(session, agent_id)
        successor = {} if replaced_by is None else {"replaced_by": replaced_by}
        audit.record(session, "admin", "agent.status", RETIRED, now, agent=agent_id, was=was, **successor)
        events.emit(session, "agent.retired", now, agent=agent_id, **successor)
    ended = select(func.count()).where(License.agent_id == agent_id, License.revoked_at.is_(None))
    return Retired(agent_id, agent.retired_at, session.scalar(ended) or 0, retention(session).retired_agents)


def _require_successor(session: Session, agent_id: str, successor: str) -> None:
    if successor == agent_id:
        raise RegistryError(f"agent {agent_id!r} cannot replace itself: name the agent that takes its place")
    agent = enrolled(session, successor)
    if agent.status != ACTIVE:
        status = shown_status(agent.status, agent.retired_at)
        raise RegistryError(f"agent {successor!r} is {status}: only an active agent can replace another one")


def remove_retired(session: Session, now: int) -> int:
    """Deletes one agent that was retired long enough ago, and returns 1; 0 if there is none.

    One in each transaction: deleting an agent locks rows, and the audit's counter must be locked last.

    Args:
        session: of a writing transaction.
        now: seconds since 1970 UTC, by housekeeping's own time.
    """
    due = Agent.retired_at <= now - retention(session).retired_agents * DAY_S
    oldest = select(Agent).where(Agent.retired_at.is_not(None), due).order_by(Agent.retired_at).limit(1)
    agent = session.scalars(passing_locked(oldest)).first()
    if agent is None:
        return 0
    delete_agent(session, agent, now, "server")
    return 1
