"""Finds and corrects what a wrong clock of this server has dated later than the present.

Certificates, secrets and keys keep their dates, since these are signed: agents get new ones by themselves. What only the
registry holds is set to the present.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, case, func, or_, select, update
from sqlalchemy.orm import Session

from server.registry.database import Database
from server.registry.dialect import by_bytes
from server.registry.models.core import Agent, Certificate, Secret, ServerKey

TOLERANCE_S = 300
BATCH = 1000
"""Agents that one transaction looks at."""
_TIMES = (Agent.updated_at, Agent.last_seen, Agent.created_at, Agent.seen_at, Agent.halted_at, Agent.retired_at)


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


def correct(database: Database, now: int, pause: Callable[[], None] = lambda: None) -> Misdated:
    """Sets agents' times that are later than `now` to it, batch by batch; counts what else is dated later.

    If it is interrupted, the agents of whole batches are corrected; to repeat it does no harm.

    Args:
        database: the registry's.
        now: seconds since 1970 UTC.
        pause: waits a little between two batches, so that others get their turn.
    """
    later, corrected, after = now + TOLERANCE_S, 0, ""
    while True:
        with database.write() as session:
            last, changed = _correct_batch(session, after, later, now)
        corrected += changed
        if last is None:
            break
        after = last
        pause()
    with database.read() as session:
        keys = session.execute(
            select(ServerKey.kind, ServerKey.kid).where(ServerKey.created_at > later, ServerKey.state == "active")
        ).all()
        return Misdated(
            _count(session, Certificate.issued_at > later, Certificate.state == "active"),
            _count(session, Secret.made_at > later, Secret.sealed.is_not(None)),
            tuple((str(kind), str(kid)) for kind, kid in sorted(keys)),
            corrected,
        )


def _correct_batch(session: Session, after: str, later: int, now: int) -> tuple[str | None, int]:
    """The last agent of the batch behind `after` (None if there is no further one), and how many were corrected."""
    agent_id = by_bytes(session, Agent.id)
    ids = list(session.scalars(select(Agent.id).where(agent_id > after).order_by(agent_id).limit(BATCH)))
    if not ids:
        return None, 0
    wrong = select(Agent.id).where(Agent.id.in_(ids), or_(*(column > later for column in _TIMES)))
    # Locked in the order of their ids, so that two callers cannot wait for each other.
    found = list(session.scalars(wrong.order_by(agent_id).with_for_update()))
    if found:
        right = {column.key: case((column > later, now), else_=column) for column in _TIMES}
        session.execute(update(Agent).where(Agent.id.in_(found)).values(right))
    return (ids[-1] if len(ids) == BATCH else None), len(found)


def _count(session: Session, *conditions: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).where(*conditions)) or 0
