"""Collects records of the audit log that a transaction writes when it needs no further lock.

Who holds the log's counter must wait for nothing else (`audit.record`). An act that changes several things, one after the
other, collects what it has to record, and writes it last. What many transactions change, as the counters of a rollout's group,
is collected too: it is locked just before the log, and so for as short a time.
"""

from typing import Any, Protocol, TypeVar

from sqlalchemy.orm import Session

from . import audit


class Part(Protocol):
    """What a transaction has collected and has to do before it writes its records."""

    def finish(self, session: Session, records: "Records") -> None:
        """Does it, and may add records."""
        ...


P = TypeVar("P", bound=Part)


class Records:
    """Records that are to be written."""

    def __init__(self) -> None:
        self._waiting: list[audit.Entry] = []
        self._parts: dict[type[Part], Any] = {}

    def add(self, actor: str, event: str, outcome: str, now: int, **fields: Any) -> None:
        """Keeps a record, which has the same members as one of `audit.record`, until `write`."""
        self._waiting.append(audit.Entry(actor, event, outcome, now, fields))

    def part(self, kind: type[P]) -> P:
        """The one part of this kind that finishes in `write`."""
        found: P = self._parts.setdefault(kind, kind())
        return found

    def write(self, session: Session) -> None:
        """Finishes the parts and writes the records in their order, in the transaction that they belong to."""
        for part in list(self._parts.values()):
            part.finish(session, self)
        waiting, self._waiting = self._waiting, []
        audit.append(session, waiting)
