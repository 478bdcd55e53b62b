"""Makes and ends silences: for a while some alerts are sent to nobody. They are raised and listed all the same."""

import secrets
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.fleets import fleets
from server.registry import audit
from server.registry.models.monitoring import FleetSilence

from .rules import Kind

LONGEST_S = 30 * 86_400
"""A silence ends by itself: one that nobody remembers would hide everything."""
MAX_SILENCES = 200
"""That have not ended."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be silenced.

    Attributes:
        fleet_id: alerts of this fleet; None for all.
        kind: alerts of this kind; None for all.
        ends_at: until when, seconds since 1970 UTC.
        comment: why.
    """

    fleet_id: str | None
    kind: Kind | None
    ends_at: int
    comment: str


def add(session: Session, wish: Wish, by: str, now: int) -> FleetSilence:
    """Silences alerts from now on.

    Args:
        session: of a writing transaction.
        wish: which, and until when.
        by: the account.
        now: seconds since 1970 UTC.

    Raises:
        Invalid: it ends in the past, or too late.
        NotFound: there is no such fleet.
        Conflict: there are too many.
    """
    if not now < wish.ends_at <= now + LONGEST_S:
        raise Invalid(f"a silence ends in the future, and after {LONGEST_S // 86_400} days at the latest")
    if wish.fleet_id is not None:
        fleets.required(session, wish.fleet_id)
    if (session.scalar(select(func.count()).select_from(FleetSilence).where(FleetSilence.ends_at > now)) or 0) >= MAX_SILENCES:
        raise Conflict(f"there are {MAX_SILENCES} silences already: end some, or silence all alerts of a fleet at once")
    row = FleetSilence(
        id=f"fs-{secrets.token_hex(6)}", fleet_id=wish.fleet_id, kind=wish.kind, begins_at=now, ends_at=wish.ends_at,
        created_by=by[:128], comment=wish.comment,
    )  # fmt: skip
    session.add(row)
    audit.record(
        session, audit.ADMIN, "fleet.alerts_silenced", "ok", now,
        silence=row.id, fleet=row.fleet_id, kind=row.kind, ends_at=row.ends_at,
    )  # fmt: skip
    return row


def end(session: Session, silence_id: str, now: int) -> FleetSilence:
    """Ends a silence now. Raises NotFound: there is no such silence; Conflict: it has ended."""
    row = session.get(FleetSilence, silence_id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no silence {silence_id!r}; 'license-server fleets alerts silences' lists them")
    if row.ends_at <= now:
        raise Conflict(f"silence {silence_id} has ended already")
    row.ends_at = now
    audit.record(session, audit.ADMIN, "fleet.silence_ended", "ok", now, silence=silence_id, fleet=row.fleet_id, kind=row.kind)
    return row


def listed(session: Session, after: str, limit: int, now: int) -> list[FleetSilence]:
    """Silences that have not ended, by id, behind one."""
    query = select(FleetSilence).where(FleetSilence.ends_at > now, FleetSilence.id > after)
    return list(session.scalars(query.order_by(FleetSilence.id).limit(limit)))
