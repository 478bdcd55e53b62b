"""Gives a person emergency access for a few hours: all that administrators may do, but for accounts. Each one is an alert.

Accounts stay out of it, so that what it gives ends with it. Acts that need a second person do not need one meanwhile.
"""

import secrets
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotAllowed, NotFound
from server.registry import audit
from server.registry.database import next_number
from server.registry.models.operators import BreakGlass

from . import accounts

MAX_S = 4 * 3600
MIN_S = 60
MIN_REASON_CHARS = 10


@dataclass(frozen=True, slots=True)
class BreakGlassRow:
    """One emergency access. Times are seconds since 1970 UTC; `ended_at` is None unless somebody ended it early."""

    break_glass_id: str
    account: str
    reason: str
    begun_at: int
    ends_at: int
    ended_at: int | None
    ended_by: str | None


def row_of(row: BreakGlass) -> BreakGlassRow:
    """The access, detached from its session."""
    return BreakGlassRow(row.id, row.account, row.reason, row.begun_at, row.ends_at, row.ended_at, row.ended_by)


def begin(session: Session, name: str, reason: str, lasts_s: int, now: int) -> BreakGlassRow:
    """Begins emergency access of a person whom an administrator has allowed it before.

    Args:
        session: of a writing transaction.
        name: of the person's account.
        reason: why, in at least `MIN_REASON_CHARS` characters.
        lasts_s: seconds until it ends by itself.
        now: seconds since 1970 UTC.

    Raises:
        NotAllowed: nobody has allowed it.
        Conflict: the person has it already.
        Invalid: reason or duration is out of bounds.
    """
    next_number(session, accounts.COUNTER)
    account = accounts.known(session, name)
    if not account.may_break_glass or account.state != accounts.ACTIVE:
        raise NotAllowed(f"account {name!r} may not take emergency access; ask an administrator to allow it")
    if len(reason.strip()) < MIN_REASON_CHARS:
        raise Invalid(f"say why in at least {MIN_REASON_CHARS} characters: everybody who reads the audit log will ask")
    if not MIN_S <= lasts_s <= MAX_S:
        raise Invalid(f"emergency access lasts from {MIN_S} to {MAX_S} s, not {lasts_s} s")
    if present(session, name, now) is not None:
        raise Conflict(f"account {name!r} has emergency access already; end it first")
    row = BreakGlass(
        id=secrets.token_hex(16), account=name, reason=reason.strip(), begun_at=now, ends_at=now + lasts_s
    )  # fmt: skip
    session.add(row)
    audit.record(session, "admin", "break_glass.begun", "alert", now, name=name, id=row.id, until=row.ends_at, why=row.reason)
    return row_of(row)


def end(session: Session, break_glass_id: str, by: str, now: int) -> BreakGlassRow:
    """Ends emergency access before its time. To end it twice does no harm.

    Raises:
        NotFound: there is no such access.
    """
    row = session.get(BreakGlass, break_glass_id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no emergency access {break_glass_id[:64]!r}; list those that are open")
    if row.ended_at is None and row.ends_at > now:
        row.ended_at, row.ended_by = now, by
        audit.record(session, "admin", "break_glass.ended", "alert", now, name=row.account, id=row.id)
    return row_of(row)


def present(session: Session, name: str, now: int) -> str | None:
    """The id of an account's emergency access, if it has one now."""
    mine = (BreakGlass.account == name, BreakGlass.ended_at.is_(None), BreakGlass.ends_at > now, BreakGlass.begun_at <= now)
    return session.scalar(select(BreakGlass.id).where(*mine).limit(1))


def listed(session: Session, after: str = "", limit: int | None = None) -> list[BreakGlassRow]:
    """Emergency accesses by id: present and former ones."""
    query = select(BreakGlass).where(BreakGlass.id > after).order_by(BreakGlass.id).limit(limit)
    return [row_of(row) for row in session.scalars(query)]
