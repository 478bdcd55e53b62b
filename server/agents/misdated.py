"""Finds and corrects what a wrong clock of this server has dated later than the present.

Certificates, secrets and keys keep their dates, since these are signed: agents get new ones by themselves. What only the
registry holds is set to the present.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from server.registry.models import Agent, Certificate, Secret, ServerKey

TOLERANCE_S = 300


@dataclass(frozen=True, slots=True)
class Misdated:
    """What is dated later than the present.

    Attributes:
        certificates: number of client certificates in use.
        secrets: number of secret versions that are not destroyed.
        keys: kind and id of the server's keys in use.
        agents: number of agents whose times in the registry were corrected.
    """

    certificates: int
    secrets: int
    keys: tuple[tuple[str, str], ...]
    agents: int


def correct(session: Session, now: int) -> Misdated:
    """Sets agents' times that are later than `now` to it; counts what else is dated later.

    Args:
        session: of a writing transaction.
        now: seconds since 1970 UTC.
    """
    later = now + TOLERANCE_S
    corrected = 0
    for column in (Agent.updated_at, Agent.last_seen, Agent.created_at, Agent.seen_at, Agent.halted_at):
        changed = session.execute(update(Agent).where(column > later).values({column.key: now}))
        corrected = max(corrected, getattr(changed, "rowcount", 0))
    keys = session.execute(
        select(ServerKey.kind, ServerKey.kid).where(ServerKey.created_at > later, ServerKey.state == "active")
    ).all()
    return Misdated(
        _count(session, Certificate.issued_at > later, Certificate.state == "active"),
        _count(session, Secret.made_at > later, Secret.sealed.is_not(None)),
        tuple((str(kind), str(kid)) for kind, kid in sorted(keys)),
        corrected,
    )


def _count(session: Session, *conditions: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).where(*conditions)) or 0
