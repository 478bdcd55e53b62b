"""Counts the agents by status as they change, so that nobody has to count a fleet.

The counts are rows of `counter`, changed in the transaction that changes the agents. A session of `Database.write` sees to it
for every agent that it adds, changes or deletes; who changes agents by a statement of its own calls `add`.
"""

from typing import Any

from sqlalchemy import event, inspect, select, update
from sqlalchemy.orm import Session

from .models.core import Agent, Counter

RETIRED = "retired"
"""The status that people see of an agent that left service; its row says revoked, and when it retired."""
STATUSES = ("active", "factory_only", "revoked", RETIRED)
_PREFIX = "agents."


def shown_status(status: str, retired_at: int | None) -> str:
    """The status of an agent as people see it: active, factory_only, revoked or retired."""
    return status if retired_at is None else RETIRED


class WritingSession(Session):
    """A session that keeps the counts."""


@event.listens_for(WritingSession, "after_flush")
def _keep(session: Session, _context: Any) -> None:
    changes: dict[str, int] = {}
    for row in (*session.new, *session.dirty, *session.deleted):
        if not isinstance(row, Agent):
            continue
        before, after = _statuses(row)
        if row in session.new:
            before = None
        elif row in session.deleted:
            after = None
        for status, change in ((before, -1), (after, 1)):
            if status is not None:
                changes[status] = changes.get(status, 0) + change
    add(session, changes)


def _statuses(row: Agent) -> tuple[str | None, str | None]:
    """The status before and after the changes that are being flushed."""
    attributes = inspect(row).attrs
    before, after = [], []
    for name in ("status", "retired_at"):
        history = attributes[name].history
        present = (history.added or history.unchanged or (getattr(row, name),))[0]
        after.append(present)
        before.append(history.deleted[0] if history.deleted else present)
    return shown_status(*before), shown_status(*after)


def add(session: Session, changes: dict[str, int]) -> None:
    """Changes the counts.

    Args:
        session: of a writing transaction.
        changes: by status, how many more.
    """
    # In the order of their names, so that two transactions cannot wait for each other.
    for status, change in sorted(changes.items()):
        if change:
            row = Counter.name == _PREFIX + status
            session.connection().execute(update(Counter).where(row).values(value=Counter.value + change))


def counted(session: Session) -> dict[str, int]:
    """The number of agents by status."""
    rows = session.execute(select(Counter.name, Counter.value).where(Counter.name.in_([_PREFIX + each for each in STATUSES])))
    found = {str(name).removeprefix(_PREFIX): int(value) for name, value in rows}
    return {status: found.get(status, 0) for status in STATUSES}
