"""Reads and sets by what a fleet is judged."""

from typing import Any

import msgspec
from sqlalchemy.orm import Session

from server.base.errors import Invalid
from server.registry import audit
from server.registry.models.monitoring import FleetWatch

from .rules import Thresholds, text_of, thresholds_of
from .watch import row_for


def thresholds_for(session: Session, fleet_id: str) -> tuple[Thresholds, int]:
    """By what a fleet is judged, and the revision of that; the usual thresholds before the first judgment."""
    row = session.get(FleetWatch, fleet_id)
    return (Thresholds(), 1) if row is None else (thresholds_of(row.thresholds), row.revision)


def set_thresholds(session: Session, fleet_id: str, changes: dict[str, Any], now: int) -> Thresholds:
    """Sets by what a fleet is judged from the next interval on. What it has observed so far counts on.

    Args:
        session: of a writing transaction.
        fleet_id: a fleet that exists.
        changes: by the members of `Thresholds`; what is left out stays.
        now: seconds since 1970 UTC.

    Raises:
        Invalid: a member is unknown, or out of bounds.
    """
    if not changes:
        raise Invalid("there is nothing to change: give at least one threshold")
    row = row_for(session, fleet_id, now)
    present = msgspec.to_builtins(thresholds_of(row.thresholds))
    found = thresholds_of(msgspec.json.encode({**present, **changes}).decode())
    row.thresholds, row.updated_at, row.revision = text_of(found), now, row.revision + 1
    audit.record(session, audit.ADMIN, "fleet.thresholds_set", "ok", now, fleet=fleet_id, thresholds=msgspec.to_builtins(found))
    return found
