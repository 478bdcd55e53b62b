"""The server's audit: every operation, in a chain of hashes in the registry itself.

A record is written in the transaction of what it tells of: neither is there without the other.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ScalarResult, select
from sqlalchemy.orm import Session

from .database import Database, next_number
from .models import AuditRecord

COUNTER = "audit"
START = "0" * 64


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `at` in seconds since 1970 UTC."""

    seq: int
    at: int
    actor: str
    event: str
    outcome: str
    fields: dict[str, Any]


def record_hash(prev: str, seq: int, at: int, actor: str, event: str, outcome: str, fields: str) -> str:
    """SHA-256 over a record and the hash of the one before it, hex."""
    text = json.dumps([prev, seq, at, actor, event, outcome, fields], separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Audit:
    """Records what is done.

    Args:
        database: of the registry.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, actor: str, event: str, outcome: str, now: int, *, session: Session | None = None, **fields: Any) -> None:
        """Records an operation.

        Args:
            actor: who: `admin`, `agent ID`, `device HW_ID`, `address IP`.
            event: what.
            outcome: how it ended.
            now: when.
            session: the transaction of the operation; one of its own if None.
            fields: more of it; never a secret.
        """
        if session is None:
            with self._database.transaction() as own:
                self._write(own, actor, event, outcome, now, fields)
        else:
            self._write(session, actor, event, outcome, now, fields)

    def _write(self, session: Session, actor: str, event: str, outcome: str, now: int, fields: dict[str, Any]) -> None:
        # What waits for other locks comes first, so that nobody waits for whoever waits for this counter.
        session.flush()
        # The counter's row is held until the transaction ends: records stand in the order of their hashes.
        seq = next_number(session, COUNTER)
        before = session.get(AuditRecord, seq - 1)
        prev = START if before is None else before.hash
        text = json.dumps(fields, separators=(",", ":"), sort_keys=True)
        digest = record_hash(prev, seq, now, actor[:128], event, outcome, text)
        session.add(
            AuditRecord(seq=seq, at=now, actor=actor[:128], event=event, outcome=outcome, fields=text, prev=prev, hash=digest)
        )
        session.flush()

    def read(self, after: int = 0, limit: int = 100) -> list[Record]:
        """Records after a number, oldest first."""
        with self._database.reading() as session:
            rows = session.scalars(
                select(AuditRecord).where(AuditRecord.seq > after).order_by(AuditRecord.seq).limit(limit)
            ).all()
        return [_record(row) for row in rows]

    def tail(self, limit: int) -> list[Record]:
        """The newest records, oldest first."""
        with self._database.reading() as session:
            rows = session.scalars(select(AuditRecord).order_by(AuditRecord.seq.desc()).limit(limit)).all()
        return [_record(row) for row in reversed(rows)]

    def verify(self) -> tuple[int, str | None]:
        """How many records hold, and what is wrong with the next one; None if nothing is."""
        prev, held = START, 0
        # Closed on every way out: PostgreSQL keeps a cursor for it.
        with self._database.reading() as session, _all(session) as rows:
            for row in rows:
                expected = record_hash(prev, row.seq, row.at, row.actor, row.event, row.outcome, row.fields)
                if row.seq != held + 1:
                    return held, f"record {held + 1} is missing"
                if row.prev != prev or row.hash != expected:
                    return held, f"record {row.seq} was changed"
                prev, held = row.hash, row.seq
        return held, None


def _all(session: Session) -> ScalarResult[AuditRecord]:
    return session.scalars(select(AuditRecord).order_by(AuditRecord.seq).execution_options(yield_per=500))


def _record(row: AuditRecord) -> Record:
    return Record(row.seq, row.at, row.actor, row.event, row.outcome, json.loads(row.fields))
