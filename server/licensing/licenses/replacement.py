"""Replaces a machine by another one in one transaction: its licenses move, its agent retires, the history keeps both."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from server.agents.registry import enrolled
from server.agents.retirement import Retired, retire
from server.base.errors import Conflict
from server.licensing.states.license_states import receiving

from .lifecycle import Moved, move_all, record_moves


@dataclass(frozen=True, slots=True)
class Replaced:
    """What was done.

    Attributes:
        retired: the agent that left service.
        moved: the licenses that the other one has now, by id.
    """

    retired: Retired
    moved: tuple[Moved, ...]


def replace(session: Session, agent_id: str, successor: str, now: int) -> Replaced:
    """Gives all licenses of an agent that are not revoked to another agent, and retires the former.

    Args:
        session: of a writing transaction.
        agent_id: the agent that leaves service; also one that was revoked or retired before.
        successor: the agent of the new machine; active.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such agent.
        Conflict: both are the same, the successor is not active, or its machine has had a trial that is among the licenses.
    """
    # In the order of their ids: two that replace each other would wait for each other.
    for each in sorted({agent_id, successor}):
        enrolled(session, each)
    if agent_id == successor:
        raise Conflict(f"agent {agent_id!r} cannot replace itself: name the agent of the new machine")
    moved = move_all(session, enrolled(session, agent_id), receiving(session, successor), now)
    retired = retire(session, agent_id, now, replaced_by=successor)
    record_moves(session, moved, now)
    return Replaced(retired, tuple(moved))
