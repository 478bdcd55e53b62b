"""Deletes an agent that was revoked or retired long enough ago, with all that belongs to it. The audit keeps what it was.

The server knows nothing of the device afterwards, and refuses it as unknown. With a new enrollment token it can be provisioned
again, as a new agent; tokens that it could still use are revoked here. Its id may be given to another device: certificates of
the deleted agent are older than that agent, and licenses are encrypted with secrets that it does not have.
"""

import json
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from common.text import quantity
from contracts.keyset import pin_of_jwk
from server.base.errors import RegistryError
from server.registry import audit, events
from server.registry.models.core import Agent, Base, Certificate, EnrollmentToken, FormerLicense, KeptReply, License, Secret
from server.registry.models.updates import UpdateAgent, UpdateDirective
from server.registry.models.usage import UsageCounter
from server.registry.upkeep.retention import DAY_S, retention

from . import device_rows
from .registry import REVOKED, enrolled


@dataclass(frozen=True, slots=True)
class Removed:
    """How many rows went with an agent, and how many enrollment tokens were revoked."""

    certificates: int
    secrets: int
    licenses: int
    enrollment_tokens: int


def remove(session: Session, agent_id: str, now: int) -> Removed:
    """Deletes an agent, its certificates, secrets and licenses.

    Args:
        session: of a writing transaction.
        agent_id: the agent.
        now: seconds since 1970 UTC.

    Raises:
        RegistryError: there is no such agent, it is not revoked, or retention keeps it.
    """
    agent = enrolled(session, agent_id)
    _require_removable(session, agent, now)
    return delete_agent(session, agent, now, "admin")


def require_removable(session: Session, agent_id: str, now: int) -> None:
    """Returns if `remove` would delete the agent now. Raises RegistryError as it does."""
    _require_removable(session, enrolled(session, agent_id, lock=False), now)


def _require_removable(session: Session, agent: Agent, now: int) -> None:
    agent_id = agent.id
    if agent.status != REVOKED:
        raise RegistryError(f"agent {agent_id!r} is {agent.status}: only a revoked agent can be deleted, after 'agents revoke'")
    days = retention(session).agents
    # A revoked agent cannot be enrolled: what has changed it last is its revocation.
    left = agent.updated_at + days * DAY_S - now
    if left > 0:
        more, least = quantity(-(-left // DAY_S), "more day"), quantity(days, "day")
        raise RegistryError(
            f"agent {agent_id!r} is kept for {more}: revoked agents are kept for {least}, which "
            "'license-server retention --agents DAYS' changes"
        )


def delete_agent(session: Session, agent: Agent, now: int, actor: str) -> Removed:
    """Deletes an agent that is locked, whatever its status, and everything of it.

    Args:
        session: of a writing transaction.
        agent: the agent.
        now: seconds since 1970 UTC.
        actor: for the audit.
    """
    agent_id = agent.id
    tokens = _revoke_tokens(session, agent_id, agent.hw_id, now)
    removed = Removed(
        certificates=_delete(session, Certificate, Certificate.agent_id == agent_id),
        secrets=_delete(session, Secret, Secret.agent_id == agent_id),
        licenses=_delete(session, License, License.agent_id == agent_id),
        enrollment_tokens=tokens,
    )
    _delete(session, KeptReply, KeptReply.agent_id == agent_id)
    _delete(session, FormerLicense, FormerLicense.agent_id == agent_id)
    # What was used on which day stays.
    _delete(session, UsageCounter, UsageCounter.agent_id == agent_id)
    _delete(session, UpdateDirective, UpdateDirective.agent_id == agent_id)
    _delete(session, UpdateAgent, UpdateAgent.agent_id == agent_id)
    device_rows.remove(session, agent_id)
    identity = None if agent.identity_key is None else pin_of_jwk(json.loads(agent.identity_key))
    retired = {} if agent.retired_at is None else {"retired_at": agent.retired_at}
    was = {"serial": agent.serial, "hw_id": agent.hw_id, "identity": identity, "revoked_at": agent.updated_at} | retired
    session.delete(agent)
    events.emit(session, "agent.deleted", now, agent=agent_id)
    audit.record(session, actor, "agent.deleted", "ok", now, agent=agent_id, **was, **asdict(removed))
    return removed


def _revoke_tokens(session: Session, agent_id: str, hw_id: str | None, now: int) -> int:
    """A device may use its token again until the token expires, unless the device is revoked: that would be forgotten."""
    mine: ColumnElement[bool] = EnrollmentToken.agent_id == agent_id
    theirs = mine if hw_id is None else or_(mine, EnrollmentToken.hw_id == hw_id)
    usable = (theirs, EnrollmentToken.state != "revoked", EnrollmentToken.expires_at > now)
    ids = list(session.scalars(select(EnrollmentToken.id).where(*usable).order_by(EnrollmentToken.id).with_for_update()))
    session.execute(update(EnrollmentToken).where(EnrollmentToken.id.in_(ids)).values(state="revoked"))
    return len(ids)


def _delete(session: Session, model: type[Base], mine: ColumnElement[bool]) -> int:
    count = session.scalar(select(func.count()).select_from(model).where(mine)) or 0
    session.execute(delete(model).where(mine))
    return count
