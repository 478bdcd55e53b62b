"""Reads what was found of fleets, for people and for the metrics."""

from dataclasses import dataclass, field

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.registry.models.core import Counter
from server.registry.models.monitoring import FleetAlert, FleetObservation, FleetWatch

from .alerts import COUNTERS, AlertState
from .intervals import INTERVAL_S
from .judgement import Health
from .rules import Severity
from .standings import Standing

STALE_S = 6 * INTERVAL_S
"""What was found longer ago is no present value for the metrics: nobody judges."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the metrics say of fleets.

    Attributes:
        error_rates: by fleet, where enough contacts were observed.
        latencies_p95_s: the same of the latency.
        raised: by severity, how many alerts were raised ever.
        open: by fleet and severity, how many are open.
    """

    error_rates: dict[str, float] = field(default_factory=dict)
    latencies_p95_s: dict[str, float] = field(default_factory=dict)
    raised: dict[str, int] = field(default_factory=dict)
    open: dict[tuple[str, str], int] = field(default_factory=dict)


def figures(session: Session, now: int) -> Figures:
    """What the metrics say: of each fleet one row, and the open alerts.

    Args:
        session: of any transaction.
        now: seconds since 1970 UTC.
    """
    rates, latencies = {}, {}
    for fleet_id, text in session.execute(select(FleetWatch.fleet_id, FleetWatch.health)):
        health = health_of(text)
        if health is None or health.at < now - STALE_S:
            continue
        if health.error_rate is not None:
            rates[fleet_id] = health.error_rate
        if health.latency_p95_s is not None:
            latencies[fleet_id] = health.latency_p95_s
    counted = dict(session.execute(select(Counter.name, Counter.value).where(Counter.name.in_(COUNTERS))).all())
    raised = {severity.value: counted.get(f"alerts.{severity}", 0) for severity in Severity}
    query = select(FleetAlert.fleet_id, FleetAlert.severity, func.count()).where(FleetAlert.state != AlertState.CLEARED.value)
    grouped = session.execute(query.group_by(FleetAlert.fleet_id, FleetAlert.severity))
    return Figures(rates, latencies, raised, {(fleet, severity): count for fleet, severity, count in grouped})


def health_of(text: str | None) -> Health | None:
    """The health as it was stored; None before the first judgment, or of another release."""
    try:
        return None if text is None else msgspec.json.decode(text, type=Health)
    except msgspec.ValidationError:
        return None


def standings_of(text: str) -> dict[str, Standing]:
    """The conditions as they were stored; none of another release."""
    try:
        return msgspec.json.decode(text, type=dict[str, Standing])
    except msgspec.ValidationError:
        return {}


def observations(session: Session, fleet_id: str, after: int, limit: int) -> list[FleetObservation]:
    """Observations of a fleet, the newest first, before a time.

    Args:
        session: of any transaction.
        fleet_id: the fleet.
        after: the begin of an interval, seconds since 1970 UTC; those before it.
        limit: at most so many.
    """
    query = select(FleetObservation).where(FleetObservation.fleet_id == fleet_id, FleetObservation.at < after)
    return list(session.scalars(query.order_by(FleetObservation.at.desc()).limit(limit)))
