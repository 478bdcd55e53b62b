"""Appends to the feed of events and reads it. An event is numbered when its transaction commits, in the order of the commits.

So a reader that continues behind the last number that it has seen misses none: no event with a smaller number commits later.
An event has ids and numbers, never a name of a person or a token; who needs more asks for the thing itself.
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event as hooks
from sqlalchemy import insert, select
from sqlalchemy.orm import Session, SessionTransaction

from .agentcounts import WritingSession
from .database import next_number, present_number
from .models.events import Event

COUNTER = "events"
_WAITING = "events.waiting"
"""In `session.info`: the events of the transaction that has not committed yet."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event.

    Attributes:
        seq: its number; it grows, with gaps.
        at: when it happened, seconds since 1970 UTC.
        kind: what happened to what, as `license.suspended`.
        subject: the id of that thing.
        fields: ids and numbers.
    """

    seq: int
    at: int
    kind: str
    subject: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Waiting:
    within: SessionTransaction | None
    at: int
    kind: str
    subject: str
    fields: str


def emit(session: Session, kind: str, now: int, **ids: str | int) -> None:
    """Appends an event. It is there once the transaction commits; one of a savepoint that is rolled back is not.

    Args:
        session: of a writing transaction.
        kind: the thing and what happened to it: `license.suspended`.
        now: seconds since 1970 UTC.
        ids: ids and numbers; the thing's own id is among them, under the kind's first word.

    Raises:
        ValueError: the thing's id is missing: an error of the program.
        RuntimeError: the session is not one of `Database.write`, which alone commits events.
    """
    thing = kind.partition(".")[0]
    if thing not in ids:
        raise ValueError(f"an event {kind} needs the id of its {thing}")
    if not isinstance(session, WritingSession):
        raise RuntimeError("events belong to a transaction of Database.write")
    fields = json.dumps(ids, separators=(",", ":"), sort_keys=True)
    within = session.get_nested_transaction()
    session.info.setdefault(_WAITING, []).append(_Waiting(within, now, kind, str(ids[thing]), fields))


@hooks.listens_for(WritingSession, "before_commit")
def _append(session: Session) -> None:
    waiting: list[_Waiting] = session.info.get(_WAITING, [])
    # A savepoint ends with this hook too; its events wait for the transaction.
    if not waiting or session.in_nested_transaction():
        return
    session.info[_WAITING] = []
    # The counter of events is the last lock of a transaction, behind that of the audit, so that no two wait for each other.
    # Numbers are at least the time: a reader's place stays behind them when a restored backup has lost some.
    session.flush()
    first = next_number(session, COUNTER, max(each.at for each in waiting), len(waiting))
    rows = [
        {"seq": first + number, "at": each.at, "kind": each.kind, "subject": each.subject, "fields": each.fields}
        for number, each in enumerate(waiting)
    ]
    session.execute(insert(Event), rows)


@hooks.listens_for(WritingSession, "after_soft_rollback")
def _forget(session: Session, rolled_back: SessionTransaction) -> None:
    def belongs(within: SessionTransaction | None) -> bool:
        while within is not None and within is not rolled_back:
            within = within.parent
        return within is rolled_back

    waiting: list[_Waiting] = session.info.get(_WAITING, [])
    whole = rolled_back.parent is None
    session.info[_WAITING] = [] if whole else [each for each in waiting if not belongs(each.within)]


def listed(session: Session, after: int, limit: int, subject: str | None = None) -> list[EventRow]:
    """Events behind a number, the oldest first.

    Args:
        session: of any transaction.
        after: the number of the last one that is known; 0 for the oldest that is kept.
        limit: at most so many.
        subject: only those of this thing.
    """
    query = select(Event).where(Event.seq > after).order_by(Event.seq).limit(limit)
    query = query if subject is None else query.where(Event.subject == subject)
    return [EventRow(row.seq, row.at, row.kind, row.subject, json.loads(row.fields)) for row in session.scalars(query)]


def newest(session: Session) -> int:
    """The number of the newest event; 0 before the first."""
    return present_number(session, COUNTER)
