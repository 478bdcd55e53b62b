"""Raises, tells of and clears the alerts of fleets. Of a fleet and a kind at most one alert is open.

To tell of an alert is to append an event to the feed: webhooks and channels send what they find there, and none is lost while
a receiver cannot be reached. An alert that a silence covers is sent when the silence ends, if it is still open then.
"""

import secrets
from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy import ColumnElement, Select, or_, select
from sqlalchemy.orm import Session

from common.statetable import Table
from server.base.errors import Conflict, NotFound
from server.registry import audit, events
from server.registry.database import next_number
from server.registry.later import Records
from server.registry.models.fleets import Fleet
from server.registry.models.monitoring import FleetAlert, FleetSilence, FleetWatch

from .judgement import Found, Judgement
from .rules import Severity
from .words import detail_of

COUNTERS = tuple(f"alerts.{severity}" for severity in Severity)
"""Counters of the registry: how many alerts were raised, or became as severe."""


class AlertState(StrEnum):
    """How an alert stands."""

    RAISED = "raised"
    ACKNOWLEDGED = "acknowledged"
    """Somebody has taken note of it. It is still open."""
    CLEARED = "cleared"


class AlertEvent(StrEnum):
    """What happens to an alert."""

    ACKNOWLEDGE = "acknowledge"
    WORSEN = "worsen"
    CLEAR = "clear"


ALERT_STATES = Table(
    "an alert",
    {
        AlertState.RAISED: {
            AlertEvent.ACKNOWLEDGE: AlertState.ACKNOWLEDGED,
            AlertEvent.WORSEN: AlertState.RAISED,
            AlertEvent.CLEAR: AlertState.CLEARED,
        },
        AlertState.ACKNOWLEDGED: {AlertEvent.WORSEN: AlertState.RAISED, AlertEvent.CLEAR: AlertState.CLEARED},
        AlertState.CLEARED: {},
    },
)


def follow(session: Session, fleet_id: str, judgement: Judgement, now: int, records: Records) -> None:
    """Brings the alerts of a fleet in line with a judgment, and tells of what is new.

    Args:
        session: of a writing transaction that has locked the fleet's watch.
        fleet_id: the fleet.
        judgement: its last one.
        now: seconds since 1970 UTC.
        records: collects what is audited.
    """
    raised = _raised(judgement)
    known = {row.kind: row for row in session.scalars(_open(FleetAlert.fleet_id == fleet_id))}
    for kind, row in known.items():
        if kind not in raised:
            _clear(session, row, now, records)
    for kind, found in raised.items():
        standing = known.get(kind)
        if standing is None:
            standing = _raise(session, fleet_id, found, now, records)
        elif found.severity.rank > Severity(standing.severity).rank:
            _worsen(session, standing, found, now, records)
        elif found.severity != standing.severity:
            standing.severity, standing.updated_at = found.severity.value, now
        _tell(session, standing, now)


def _raised(judgement: Judgement) -> Mapping[str, Found]:
    """Of each kind that is raised, the most severe condition."""
    found: dict[str, Found] = {}
    for each in judgement.found:
        known = found.get(each.kind.value)
        if judgement.standings[each.key].state.is_raised and (known is None or each.severity.rank > known.severity.rank):
            found[each.kind.value] = each
    return found


def _raise(session: Session, fleet_id: str, found: Found, now: int, records: Records) -> FleetAlert:
    row = FleetAlert(
        id=f"fa-{secrets.token_hex(6)}", fleet_id=fleet_id, kind=found.kind.value, severity=found.severity.value,
        state=AlertState.RAISED.value, value=found.value, bound=found.bound, detail=detail_of(found),
        raised_at=now, updated_at=now,
    )  # fmt: skip
    session.add(row)
    _count(session, row, records, now)
    return row


def _worsen(session: Session, row: FleetAlert, found: Found, now: int, records: Records) -> None:
    row.state = ALERT_STATES.step(AlertState(row.state), AlertEvent.WORSEN).value
    row.severity, row.value, row.bound, row.detail = found.severity.value, found.value, found.bound, detail_of(found)
    row.updated_at, row.acknowledged_at, row.acknowledged_by = now, None, None
    _count(session, row, records, now)


def _count(session: Session, row: FleetAlert, records: Records, now: int) -> None:
    next_number(session, f"alerts.{row.severity}")
    records.add(
        "server", "fleet.alert_raised", "alert", now, alert=row.id, fleet=row.fleet_id, kind=row.kind, severity=row.severity
    )


def _clear(session: Session, row: FleetAlert, now: int, records: Records) -> None:
    row.state = ALERT_STATES.step(AlertState(row.state), AlertEvent.CLEAR).value
    row.cleared_at = row.updated_at = now
    records.add("server", "fleet.alert_cleared", "ok", now, alert=row.id, fleet=row.fleet_id, kind=row.kind)
    if row.told is not None:  # who heard of it hears of its end, whatever is silenced now
        _emit(session, "alert.cleared", row, now)


def _tell(session: Session, row: FleetAlert, now: int) -> None:
    """Tells of an open alert, unless that was done already or a silence covers it."""
    told = -1 if row.told is None else Severity(row.told).rank
    if Severity(row.severity).rank > told and not is_silenced(session, row, now):
        row.told = row.severity
        _emit(session, "alert.raised", row, now)


def _emit(session: Session, kind: str, row: FleetAlert, now: int) -> None:
    numbers = {"value": f"{row.value:.6g}", "bound": f"{row.bound:.6g}"}
    events.emit(session, kind, now, alert=row.id, fleet=row.fleet_id, about=row.kind, severity=row.severity, **numbers)


def _open(*conditions: ColumnElement[bool]) -> Select[FleetAlert]:
    return select(FleetAlert).where(FleetAlert.state != AlertState.CLEARED.value, *conditions).order_by(FleetAlert.id)


def forget_fleets(session: Session, now: int, records: Records) -> None:
    """Clears open alerts of fleets that are no more, and removes how those were watched."""
    gone = ~select(Fleet.id).where(Fleet.id == FleetAlert.fleet_id).exists()
    for row in session.scalars(_open(gone).with_for_update()):
        _clear(session, row, now, records)
    for watch in session.scalars(select(FleetWatch).where(~select(Fleet.id).where(Fleet.id == FleetWatch.fleet_id).exists())):
        session.delete(watch)


def acknowledge(session: Session, alert_id: str, by: str, now: int) -> FleetAlert:
    """Takes note of an alert for somebody.

    Args:
        session: of a writing transaction.
        alert_id: the alert.
        by: the account.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such alert.
        Conflict: it is cleared, or was acknowledged.
    """
    row = required(session, alert_id, lock=True)
    if row.state != AlertState.RAISED.value:
        raise Conflict(f"alert {alert_id} is {row.state} already")
    row.state = ALERT_STATES.step(AlertState.RAISED, AlertEvent.ACKNOWLEDGE).value
    row.acknowledged_at, row.acknowledged_by, row.updated_at = now, by[:128], now
    audit.record(session, audit.ADMIN, "fleet.alert_acknowledged", "ok", now, alert=alert_id, fleet=row.fleet_id, kind=row.kind)
    return row


def required(session: Session, alert_id: str, *, lock: bool = False) -> FleetAlert:
    """An alert. Raises NotFound."""
    row = session.get(FleetAlert, alert_id, with_for_update=lock or None, populate_existing=lock)
    if row is None:
        raise NotFound(f"there is no alert {alert_id!r}; 'license-server fleets alerts list' lists them")
    return row


def listed(session: Session, after: str, limit: int, fleet_id: str | None = None, *, cleared: bool = False) -> list[FleetAlert]:
    """Alerts by id, behind one.

    Args:
        session: of any transaction.
        after: an id; empty for the first.
        limit: at most so many.
        fleet_id: of this fleet only.
        cleared: also those that are over.
    """
    query = select(FleetAlert).where(FleetAlert.id > after).order_by(FleetAlert.id).limit(limit)
    query = query if fleet_id is None else query.where(FleetAlert.fleet_id == fleet_id)
    return list(session.scalars(query if cleared else query.where(FleetAlert.state != AlertState.CLEARED.value)))


def is_silenced(session: Session, row: FleetAlert, now: int) -> bool:
    """Whether a silence covers an alert now."""
    query = select(FleetSilence.id).where(
        FleetSilence.ends_at > now,
        FleetSilence.begins_at <= now,
        or_(FleetSilence.fleet_id.is_(None), FleetSilence.fleet_id == row.fleet_id),
        or_(FleetSilence.kind.is_(None), FleetSilence.kind == row.kind),
    )
    return session.scalar(query.limit(1)) is not None
