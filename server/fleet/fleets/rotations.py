"""Counts the client certificates that agents renewed: of all agents, and of each fleet while it exists."""

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from server.registry.database import next_number
from server.registry.models.core import Counter
from server.registry.models.fleets import Fleet

from .membership import fleets_of

COUNTER = "certificate_rotations"


@dataclass(frozen=True, slots=True)
class Rotations:
    """How many certificates were renewed: of all agents, and by fleet. An agent in several fleets counts in each."""

    total: int
    fleets: dict[str, int]


def note(session: Session, agent_id: str) -> None:
    """Counts a renewal, for all agents and for the agent's fleets. Call it before what locks the audit log's counter.

    Args:
        session: of a writing transaction that has locked the agent.
        agent_id: the agent that renews.
    """
    next_number(session, COUNTER)  # locked first and by everybody, so nobody waits for another's fleets
    mine = [fleet.id for fleet in fleets_of(session, agent_id)]
    counted = update(Fleet).where(Fleet.id.in_(mine)).values(rotations=Fleet.rotations + 1)
    session.execute(counted, execution_options={"synchronize_session": False})


def rotations(session: Session) -> Rotations:
    """The counts."""
    counter = session.get(Counter, COUNTER)
    rows = session.execute(select(Fleet.id, Fleet.rotations))
    return Rotations(0 if counter is None else counter.value, {row[0]: row[1] for row in rows})
