"""Writes and verifies the server's audit log: a hash chain in the registry, with a record of every operation.

A record is written in the transaction of the operation that it describes, so that neither exists without the other.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ScalarResult, select
from sqlalchemy.orm import Session

from .database import next_number
from .models import AuditRecord

COUNTER = "audit"
START = "0" * 64
"""What the first record has in place of the hash of the one before it."""


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
    """The SHA-256 of a record and of the hash of the one before it, in hex."""
    text = json.dumps([prev, seq, at, actor, event, outcome, fields], separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def record(session: Session, actor: str, event: str, outcome: str, now: int, **fields: Any) -> None:
    """Appends a record.

    Args:
        session: the transaction of the operation.
        actor: `admin`, `agent ID`, `device HW_ID`, `address IP` or `server`.
        event: the operation's name, such as `license.issued`.
        outcome: `ok`, `alert`, or what else the operation ended with.
        now: seconds since 1970 UTC.
        fields: details; never a secret.
    """
    # Everything that may wait for another lock comes first: a transaction that holds the audit counter waits for no other.
    session.flush()
    # The counter's row is locked until the transaction ends, so that records follow each other in the order of their hashes.
    seq = next_number(session, COUNTER)
    before = session.get(AuditRecord, seq - 1)
    prev = START if before is None else before.hash
    text = json.dumps(fields, separators=(",", ":"), sort_keys=True)
    digest = record_hash(prev, seq, now, actor[:128], event, outcome, text)
    session.add(
        AuditRecord(seq=seq, at=now, actor=actor[:128], event=event, outcome=outcome, fields=text, prev=prev, hash=digest)
    )
    session.flush()


def tail(session: Session, limit: int) -> list[Record]:
    """The newest records, oldest first."""
    rows = session.scalars(select(AuditRecord).order_by(AuditRecord.seq.desc()).limit(limit)).all()
    return [_record(row) for row in reversed(rows)]


def verify(session: Session) -> tuple[int, str | None]:
    """Counts the records that verify, and says what is wrong with the next one; None if the chain is whole."""
    prev, count = START, 0
    # Closed on every way out: PostgreSQL keeps a cursor open.
    with _all(session) as rows:
        for row in rows:
            expected = record_hash(prev, row.seq, row.at, row.actor, row.event, row.outcome, row.fields)
            if row.seq != count + 1:
                return count, f"record {count + 1} is missing"
            if row.prev != prev or row.hash != expected:
                return count, f"record {row.seq} was changed"
            prev, count = row.hash, row.seq
    return count, None


def _all(session: Session) -> ScalarResult[AuditRecord]:
    return session.scalars(select(AuditRecord).order_by(AuditRecord.seq).execution_options(yield_per=500))


def _record(row: AuditRecord) -> Record:
    return Record(row.seq, row.at, row.actor, row.event, row.outcome, json.loads(row.fields))
