"""Lists licenses, by id."""

import json
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.agents.registry import REVOKED
from server.registry.agentcounts import shown_status
from server.registry.models import Agent, License


@dataclass(frozen=True, slots=True)
class LicenseRow:
    """A license as administrators see it. Times are seconds since 1970 UTC.

    Attributes:
        license_id: its id.
        agent_id: the agent that it was issued to.
        state: valid, not_yet_valid, expired or revoked; agent_revoked or agent_retired if only its agent is, which therefore
            gets nothing any more.
        subject: who it is for.
        features: what is licensed.
        metadata: for the POS application.
        not_before: when it begins.
        expires: when it ends.
        secret_version: of the agent's secret that its newest token is encrypted with.
        revoked_at: None if it is not revoked.
    """

    license_id: str
    agent_id: str
    state: str
    subject: str
    features: tuple[str, ...]
    metadata: dict[str, str]
    not_before: int
    expires: int
    secret_version: int
    revoked_at: int | None


def listed(
    session: Session,
    now: int,
    agent_id: str | None = None,
    after: str = "",
    limit: int | None = None,
    *,
    revoked: bool | None = None,
) -> list[LicenseRow]:
    """Licenses by id.

    Args:
        session: of any transaction.
        now: seconds since 1970 UTC; decides the state.
        agent_id: only those of this agent.
        after: only those whose id comes after this one.
        limit: at most so many; None for all, which may be those of a whole fleet.
        revoked: True for revoked ones only, False for others only.
    """
    query = select(License, Agent.status, Agent.retired_at).outerjoin(Agent, Agent.id == License.agent_id)
    query = query.where(License.jti > after).order_by(License.jti).limit(limit)
    if agent_id is not None:
        query = query.where(License.agent_id == agent_id)
    if revoked is not None:
        query = query.where(License.revoked_at.is_not(None) if revoked else License.revoked_at.is_(None))
    return [_row(row, status, retired_at, now) for row, status, retired_at in session.execute(query)]


def one(session: Session, license_id: str, now: int) -> LicenseRow | None:
    """The license with this id; None if there is none."""
    row = session.get(License, license_id)
    if row is None:
        return None
    agent = session.get(Agent, row.agent_id)
    return _row(row, None if agent is None else agent.status, None if agent is None else agent.retired_at, now)


def _row(row: License, agent_status: str | None, retired_at: int | None, now: int) -> LicenseRow:
    claims = json.loads(row.claims)
    state = "valid"
    if row.revoked_at is not None:
        state = "revoked"
    elif now >= claims["exp"]:
        state = "expired"
    elif agent_status == REVOKED:
        state = f"agent_{shown_status(agent_status, retired_at)}"
    elif now < claims["nbf"]:
        state = "not_yet_valid"
    features, metadata = tuple(claims.get("features", ())), dict(claims.get("metadata", {}))
    return LicenseRow(
        row.jti, row.agent_id, state, claims["sub"], features, metadata, claims["nbf"], claims["exp"], row.secret_version,
        row.revoked_at,
    )  # fmt: skip
