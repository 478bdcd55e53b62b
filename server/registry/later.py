"""Collects records of the audit log that a transaction writes when it needs no further lock.

Who holds the log's counter must wait for nothing else (`audit.record`). An act that changes several things, one after the
other, collects what it has to record, and writes it last.
"""

from typing import Any

from sqlalchemy.orm import Session

from . import audit


class Records:
    """Records that are to be written."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, str, str, int, dict[str, Any]]] = []

    def add(self, actor: str, event: str, outcome: str, now: int, **fields: Any) -> None:
        """Keeps a record, which has the same members as one of `audit.record`, until `write`."""
        self._waiting.append((actor, event, outcome, now, fields))

    def write(self, session: Session) -> None:
        """Writes the records in their order, in the transaction that they belong to."""
        waiting, self._waiting = self._waiting, []
        for actor, event, outcome, now, fields in waiting:
            audit.record(session, actor, event, outcome, now, **fields)
