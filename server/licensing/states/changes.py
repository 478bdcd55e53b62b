"""Numbers the changes of an agent's licenses, so that the agent learns of them at its next contact (`deliveries`).

`changed` belongs into every transaction that changes a license, and `left` into one that takes a license from its machine.
"""

from collections.abc import Sequence

from sqlalchemy import update
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry.database import next_number, present_number
from server.registry.models.core import Agent, Counter, FormerLicense, License

BASE = "license_changes.base"
"""The counter with the number of every agent whose licenses have not changed since: of the beginning, or of the last restored
backup. An agent that knows less than this gets everything."""


def renumber(session: Session, now: int) -> None:
    """Makes every agent ask for all of its licenses once: a restored registry knows less.

    Args:
        session: of a writing transaction, on a registry of any revision.
        now: seconds since 1970 UTC.
    """
    # A backup of an older release has no such number; an agent's is above what its registry says then, and that is enough.
    if session.get(Counter, BASE) is not None:
        next_number(session, BASE, now)


def present(session: Session, agent: Agent) -> int:
    """The number of the newest change of an agent's licenses."""
    return max(agent.license_changes or 0, present_number(session, BASE))


def changed(session: Session, agent_id: str, now: int, license_ids: Sequence[str] | None = None) -> None:
    """Notes that licenses of an agent have changed: it learns of them at its next contact.

    Args:
        session: of the writing transaction that changes them. It has locked the agent before the licenses.
        agent_id: the agent that they belong to.
        now: seconds since 1970 UTC.
        license_ids: which ones; None for all of the agent's.

    Raises:
        RegistryError: there is no such agent.
    """
    mine = License.agent_id == agent_id if license_ids is None else License.jti.in_(license_ids)
    session.flush()
    number = _next(session, agent_id, now)
    session.execute(update(License).where(License.agent_id == agent_id, mine).values(change_number=number))


def left(session: Session, agent_id: str, license_id: str, expires: int, now: int) -> None:
    """Notes that a license belongs to an agent no longer: the agent refuses it from its next contact on.

    Args:
        session: of the writing transaction that takes it away. It has locked the agent before the license.
        agent_id: the agent that had it.
        license_id: the license.
        expires: when it ends; the note is kept until then.
        now: seconds since 1970 UTC.

    Raises:
        RegistryError: there is no such agent.
    """
    number = _next(session, agent_id, now)
    session.merge(FormerLicense(agent_id=agent_id, jti=license_id, change_number=number, expires_at=expires))
    session.flush()


def _next(session: Session, agent_id: str, now: int) -> int:
    agent = session.get(Agent, agent_id, with_for_update=True)
    if agent is None:
        raise RegistryError(f"no agent {agent_id!r} is enrolled; 'license-server agents list' lists them")
    # With the time in it, numbers grow even if a restored backup lost some.
    agent.license_changes = max(present(session, agent) + 1, now)
    session.flush()
    return agent.license_changes
