"""Writes and verifies the server's audit log: a hash chain in the registry, with a record of every operation.

A record is written in the transaction of the operation that it describes, so that neither exists without the other.

Retention removes the oldest records. Before that, a record `audit.removed` says up to which one, and which hash that one has;
an HMAC under a key of the registry shows that this server has written it. So the chain verifies from there on, and a removal
that nobody has announced shows.
"""

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ScalarResult, delete, insert, select
from sqlalchemy.orm import Session

from .database import OPERATOR, next_number, present_number
from .models.core import AuditRecord

COUNTER = "audit"
ADMIN = "admin"
"""The actor of what an administrator's command does; fields say who that was."""
REMOVED = "audit.removed"
REMOVED_AT_LEAST = 100
"""Records that are removed together, so that most records are not about removals."""
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


@dataclass(frozen=True, slots=True)
class Entry:
    """A record that is to be appended; its members are those that `record` takes."""

    actor: str
    event: str
    outcome: str
    at: int
    fields: dict[str, Any]


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
    append(session, [Entry(actor, event, outcome, now, fields)])


def append(session: Session, entries: Sequence[Entry]) -> None:
    """Appends records in their order, in the transaction of what they describe. Does nothing without any."""
    if not entries:
        return
    # Everything that may wait for another lock comes first: a transaction that holds the audit counter waits for no other.
    session.flush()
    # The counter's row is locked until the transaction ends, so that records follow each other in the order of their hashes.
    first = next_number(session, COUNTER, count=len(entries))
    prev = session.scalar(select(AuditRecord.hash).where(AuditRecord.seq == first - 1)) or START
    operator = session.info.get(OPERATOR, {})
    rows = []
    for seq, entry in enumerate(entries, first):
        fields = {**operator, **entry.fields} if entry.actor == ADMIN else entry.fields
        text, actor = json.dumps(fields, separators=(",", ":"), sort_keys=True), entry.actor[:128]
        digest = record_hash(prev, seq, entry.at, actor, entry.event, entry.outcome, text)
        rows.append(
            {
                "seq": seq, "at": entry.at, "actor": actor, "event": entry.event, "outcome": entry.outcome, "fields": text,
                "prev": prev, "hash": digest,
            }
        )  # fmt: skip
        prev = digest
    session.execute(insert(AuditRecord), rows)


def tail(session: Session, limit: int) -> list[Record]:
    """The newest records, oldest first."""
    rows = session.scalars(select(AuditRecord).order_by(AuditRecord.seq.desc()).limit(limit)).all()
    return [_record(row) for row in reversed(rows)]


def newest(session: Session) -> int:
    """The number of the newest record."""
    return present_number(session, COUNTER)


def listed(session: Session, after: int, limit: int) -> list[Record]:
    """Records behind a number, oldest first, at most so many."""
    query = select(AuditRecord).where(AuditRecord.seq > after).order_by(AuditRecord.seq).limit(limit)
    return [_record(row) for row in session.scalars(query)]


def verify(session: Session, key: bytes) -> tuple[int, str | None]:
    """The number of the last record that verifies, and what is wrong after it; None if the chain is whole.

    Args:
        session: of any transaction.
        key: `Cipher.audit_key`, which has proved what was removed.
    """
    removal = _removal(session, key)
    first = session.scalar(select(AuditRecord.seq).order_by(AuditRecord.seq).limit(1))
    count, prev = 0, START
    if removal is not None and first is not None and first > 1:
        # While a removal is under way, some of the records that it has announced are still there.
        count = min(first - 1, removal.last)
        prev = removal.hash if count == removal.last else ""
    # Closed on every way out: PostgreSQL keeps a cursor open.
    with _all(session) as rows:
        for row in rows:
            prev = prev or row.prev
            expected = record_hash(prev, row.seq, row.at, row.actor, row.event, row.outcome, row.fields)
            if row.seq != count + 1:
                return count, f"record {count + 1} is missing"
            if row.prev != prev or row.hash != expected or (removal and row.seq == removal.last and row.hash != removal.hash):
                return count, f"record {row.seq} was changed"
            prev, count = row.hash, row.seq
    if count < present_number(session, COUNTER):
        return count, f"record {count + 1} is missing"
    return count, None


def newest_at(session: Session) -> int | None:
    """When the newest record was written, seconds since 1970 UTC; None if there is none."""
    return session.scalar(select(AuditRecord.at).order_by(AuditRecord.seq.desc()).limit(1))


def first_kept(session: Session) -> int:
    """The number of the oldest record."""
    return session.scalar(select(AuditRecord.seq).order_by(AuditRecord.seq).limit(1)) or 0


# Removal


@dataclass(frozen=True, slots=True)
class _Removal:
    """Records up to `last`, which has `hash`, may be missing."""

    last: int
    hash: str


def _proof(key: bytes, last: int, digest: str) -> str:
    return hmac.digest(key, f"removed/{last}/{digest}".encode(), "sha256").hex()


def _removal(session: Session, key: bytes) -> _Removal | None:
    """The newest removal that this server has announced."""
    query = select(AuditRecord).where(AuditRecord.event == REMOVED).order_by(AuditRecord.seq.desc()).limit(1)
    row = session.scalars(query).first()
    if row is None:
        return None
    fields = json.loads(row.fields)
    last, digest = int(fields.get("last", 0)), str(fields.get("hash", ""))
    sound = hmac.compare_digest(str(fields.get("proof", "")), _proof(key, last, digest))
    return _Removal(last, digest) if sound else None


def announce_removal(session: Session, before: int, now: int, key: bytes) -> int | None:
    """Announces the removal of the oldest records that were written before a time; returns the number of the last one.

    Args:
        session: of a writing transaction.
        before: seconds since 1970 UTC. Only records before the first one that is not older go.
        now: seconds since 1970 UTC.
        key: `Cipher.audit_key`.
    """
    younger = select(AuditRecord.seq).where(AuditRecord.at >= before).order_by(AuditRecord.seq).limit(1)
    kept = session.scalar(younger)
    last = (present_number(session, COUNTER) if kept is None else kept - 1) or None
    row = None if last is None else session.get(AuditRecord, last)
    removal = _removal(session, key)
    if row is None:
        return None if removal is None else removal.last
    if removal is not None and row.seq <= removal.last:
        return removal.last
    if row.seq - first_kept(session) + 1 < REMOVED_AT_LEAST:
        return None
    record(session, "server", REMOVED, "ok", now, last=row.seq, hash=row.hash, proof=_proof(key, row.seq, row.hash))
    return row.seq


def remove_announced(session: Session, last: int, most: int) -> int:
    """Removes the oldest records up to the announced one; returns how many.

    Args:
        session: of a writing transaction.
        last: what `announce_removal` has returned.
        most: at most so many.
    """
    oldest = select(AuditRecord.seq).where(AuditRecord.seq <= last).order_by(AuditRecord.seq).limit(most)
    numbers = list(session.scalars(oldest))
    session.execute(delete(AuditRecord).where(AuditRecord.seq.in_(numbers)))
    return len(numbers)


def _all(session: Session) -> ScalarResult[AuditRecord]:
    return session.scalars(select(AuditRecord).order_by(AuditRecord.seq).execution_options(yield_per=500))


def _record(row: AuditRecord) -> Record:
    return Record(row.seq, row.at, row.actor, row.event, row.outcome, json.loads(row.fields))
