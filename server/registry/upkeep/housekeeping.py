"""Removes rows that nothing needs any more, in small transactions, so that no request waits for long.

It never trusts one look at the clock: its own time goes forward by at most an hour for each run, and back with the clock. A
clock that is wrong for a minute removes nothing that would not have gone an hour later.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from server.registry import audit
from server.registry.allowance import KEPT_S as ALLOWANCE_KEPT_S
from server.registry.database import Database
from server.registry.models.core import (
    Allowance,
    Base,
    Certificate,
    EnrollmentToken,
    FormerLicense,
    KeptReply,
    ProvisioningAttempt,
    Secret,
    Setting,
)
from server.registry.models.events import Event
from server.registry.models.operators import Approval, OperatorReply
from server.registry.models.usage import UsageCounter, UsageDay
from server.registry.models.webhooks import DeadLetter

from .retention import DAY_S, retention

DEAD_LETTERS_S = 30 * DAY_S
"""How long an event is kept that the receiver of a webhook has not taken."""
BATCH = 500
"""Rows that one transaction removes."""
MAX_BATCHES = 200
"""Batches of one kind in one run; the next run goes on."""
MAX_STEP_S = 3600
MAX_REPLIES_IN_ALL = 500_000
"""Kept replies of all agents. Beyond that the oldest go, but none that a request could still ask for (`kept_replies`)."""
REPLIES_NEEDED_S = 600
"""As `kept_replies.SHORT_KEPT_S`; a test holds them together."""
APPROVALS_KEPT_S = 90 * DAY_S
"""How long approvals are kept after their end, for people to read; the audit has them longer."""
SECRET_IN_USE = "ACTIVE"
"""As `secret_states.State.ACTIVE`; a test holds them together."""
_TIME = "housekeeping.time"


@dataclass(slots=True)
class Removed:
    """What one run has removed: rows, by the name of the table."""

    rows: dict[str, int] = field(default_factory=dict)

    def add(self, table: str, count: int) -> None:
        """Counts rows."""
        if count:
            self.rows[table] = self.rows.get(table, 0) + count


@dataclass(frozen=True, slots=True)
class Chore:
    """What another room removes.

    Attributes:
        table: where.
        remove: removes one batch in a transaction, given the time by which rows are due; returns how many rows it removed.
        size: of a full batch; with less, the chore is done.
        most: batches of one run.
    """

    table: str
    remove: Callable[[Session, int], int]
    size: int = BATCH
    most: int = MAX_BATCHES


class Housekeeping:
    """Removes rows.

    Args:
        database: the registry's.
        audit_key: `Cipher.audit_key`.
        chores: of other rooms, done after those that are here.
    """

    def __init__(self, database: Database, audit_key: bytes, chores: Sequence[Chore] = ()) -> None:
        self._database = database
        self._audit_key = audit_key
        self._chores = chores

    def run(self, now: int, *, confirmed: bool = False) -> Removed:
        """Removes what is due.

        Args:
            now: seconds since 1970 UTC.
            confirmed: an operator asks for it, and vouches for the clock.
        """
        removed = Removed()
        with self._database.write() as session:
            now = _certain(session, now, confirmed=confirmed)
            days = retention(session)
        self._remove_replies(removed, now)
        self._remove_former_licenses(removed, now)
        self._remove_by(removed, ProvisioningAttempt.id, ProvisioningAttempt.expires_at <= now)
        self._remove_by(removed, Allowance.name, Allowance.at < now - ALLOWANCE_KEPT_S)
        self._remove_by(removed, OperatorReply.id, OperatorReply.kept_until <= now)
        self._remove_by(removed, Approval.id, Approval.expires_at <= now - APPROVALS_KEPT_S)
        tokens = EnrollmentToken.expires_at <= now - days.enrollment_tokens * DAY_S
        in_use = select(ProvisioningAttempt.claim_id).where(ProvisioningAttempt.claim_id == EnrollmentToken.id).exists()
        self._remove_by(removed, EnrollmentToken.id, tokens & ~in_use)
        self._remove_by(removed, Event.seq, Event.at <= now - days.events * DAY_S)
        self._remove_dead_letters(removed, now)
        self._remove_usage(removed, now - days.usage * DAY_S)
        self._remove_by(removed, Certificate.fingerprint, Certificate.not_after <= now - days.certificates * DAY_S)
        self._remove_secrets(removed, now, days.secrets)
        for chore in self._chores:
            self._batches(removed, chore.table, partial(_at, chore, now), chore.size, chore.most)
        if days.audit:
            self._remove_audit(removed, now, days.audit)
        return removed

    def _batches(
        self, removed: Removed, table: str, batch: Callable[[Session], int], size: int | None = None, most: int = MAX_BATCHES
    ) -> None:
        for _ in range(most):
            with self._database.write() as session:
                count = batch(session)
            removed.add(table, count)
            if count < (BATCH if size is None else size):
                return

    def _remove_by(self, removed: Removed, key: InstrumentedAttribute[object], due: ColumnElement[bool]) -> None:
        def batch(session: Session) -> int:
            keys = list(session.scalars(select(key).where(due).limit(BATCH)))
            session.execute(delete(key.class_).where(key.in_(keys)))
            return len(keys)

        self._batches(removed, str(key.class_.__tablename__), batch)

    def _remove_dead_letters(self, removed: Removed, now: int) -> None:
        def batch(session: Session) -> int:
            keys = (DeadLetter.webhook_id, DeadLetter.seq)
            due = [
                tuple(row)
                for row in session.execute(select(*keys).where(DeadLetter.died_at <= now - DEAD_LETTERS_S).limit(BATCH))
            ]
            session.execute(delete(DeadLetter).where(tuple_(*keys).in_(due)))
            return len(due)

        self._batches(removed, "dead_letter", batch)

    def _remove_usage(self, removed: Removed, before: int) -> None:
        days = UsageDay.license_id, UsageDay.meter, UsageDay.day, UsageDay.agent_id
        counters = UsageCounter.agent_id, UsageCounter.epoch

        def batch_of(model: type[Base], key: Any, due: ColumnElement[bool], session: Session) -> int:
            keys = [tuple(row) for row in session.execute(select(*key).where(due).limit(BATCH))]
            session.execute(delete(model).where(tuple_(*key).in_(keys)))
            return len(keys)

        of_days, of_counters = UsageDay.day < before // DAY_S, UsageCounter.counted_at <= before
        self._batches(removed, UsageDay.__tablename__, partial(batch_of, UsageDay, days, of_days))
        self._batches(removed, UsageCounter.__tablename__, partial(batch_of, UsageCounter, counters, of_counters))

    def _remove_replies(self, removed: Removed, now: int) -> None:
        def batch(session: Session) -> int:
            due = KeptReply.kept_until < now
            keys = session.execute(select(KeptReply.agent_id, KeptReply.request_id).where(due).limit(BATCH)).all()
            if not keys:
                extra = (session.scalar(select(func.count()).select_from(KeptReply)) or 0) - MAX_REPLIES_IN_ALL
                if extra <= 0:
                    return 0
                oldest = select(KeptReply.agent_id, KeptReply.request_id).where(KeptReply.kept_at < now - REPLIES_NEEDED_S)
                keys = session.execute(oldest.order_by(KeptReply.kept_at).limit(min(BATCH, extra))).all()
            place = tuple_(KeptReply.agent_id, KeptReply.request_id)
            session.execute(delete(KeptReply).where(place.in_([tuple(key) for key in keys])))
            return len(keys)

        self._batches(removed, KeptReply.__tablename__, batch)

    def _remove_former_licenses(self, removed: Removed, now: int) -> None:
        """What was taken from an agent and has ended since: its tokens are refused in any case."""
        place = tuple_(FormerLicense.agent_id, FormerLicense.jti)

        def batch(session: Session) -> int:
            due = select(FormerLicense.agent_id, FormerLicense.jti).where(FormerLicense.expires_at <= now).limit(BATCH)
            keys = [tuple(row) for row in session.execute(due)]
            session.execute(delete(FormerLicense).where(place.in_(keys)))
            return len(keys)

        self._batches(removed, FormerLicense.__tablename__, batch)

    def _remove_secrets(self, removed: Removed, now: int, days: int) -> None:
        """Destroys secrets whose grace has ended; much later their rows go, but never the newest: new numbers follow it."""
        place = tuple_(Secret.agent_id, Secret.version)

        def ended(session: Session, *due: ColumnElement[bool]) -> list[tuple[object, ...]]:
            rows = session.execute(
                select(Secret.agent_id, Secret.version).where(Secret.state != SECRET_IN_USE, *due).limit(BATCH)
            )
            return [tuple(row) for row in rows]

        def destroy(session: Session) -> int:
            keys = ended(session, Secret.sealed.is_not(None), Secret.grace_until <= now)
            session.execute(update(Secret).where(place.in_(keys)).values(sealed=None))
            return len(keys)

        def remove(session: Session) -> int:
            later = Secret.__table__.alias("later")
            newer = (
                select(later.c.version).where(later.c.agent_id == Secret.agent_id, later.c.version > Secret.version).exists()
            )
            keys = ended(session, Secret.grace_until <= now - days * DAY_S, newer)
            session.execute(delete(Secret).where(place.in_(keys)))
            return len(keys)

        self._batches(removed, "secret (destroyed)", destroy)
        self._batches(removed, Secret.__tablename__, remove)

    def _remove_audit(self, removed: Removed, now: int, days: int) -> None:
        with self._database.write() as session:
            last = audit.announce_removal(session, now - days * DAY_S, now, self._audit_key)
        if last is not None:
            self._batches(removed, "audit", lambda session: audit.remove_announced(session, last, BATCH))


def _at(chore: Chore, now: int, session: Session) -> int:
    return chore.remove(session, now)


def _certain(session: Session, now: int, *, confirmed: bool) -> int:
    """The time by which rows are due: as late as the clock, and at most `MAX_STEP_S` later than at the last run."""
    row = session.get(Setting, _TIME, with_for_update=True)
    # Before the first run, the audit says when the server last did anything.
    last = audit.newest_at(session) if row is None else int(row.value)
    certain = now if confirmed or last is None else min(now, last + MAX_STEP_S)
    session.merge(Setting(name=_TIME, value=str(certain)))
    return certain
