"""Removes observations that are too old: on PostgreSQL whole days, on SQLite rows by the index of their time.

PostgreSQL's partitions are made here too, a week ahead. What arrives on a day without one goes into the partition for the rest,
from which it is removed row by row.
"""

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from server.registry.dialect import drop_partitions, make_partitions
from server.registry.models.core import Base
from server.registry.models.monitoring import FleetAlert, FleetObservation, FleetSilence

from .intervals import KEPT_S

DAY_S = 86_400
AHEAD = 8
"""Days that have a partition: this one, and a week."""
BATCH = 500
_TABLE = Base.metadata.tables[FleetObservation.__tablename__]


def make_room(session: Session, now: int) -> int:
    """Makes the partitions of the next days; returns how many were missing.

    Args:
        session: of a writing transaction.
        now: seconds since 1970 UTC.
    """
    return make_partitions(session, _TABLE, now // DAY_S * DAY_S, DAY_S, AHEAD)


def remove_observations(session: Session, now: int) -> int:
    """Removes one batch of observations that are older than 90 days; returns how many rows were removed one by one.

    Args:
        session: of a writing transaction.
        now: seconds since 1970 UTC.
    """
    drop_partitions(session, _TABLE, now - KEPT_S, DAY_S)
    key = FleetObservation.fleet_id, FleetObservation.at
    old = [tuple(row) for row in session.execute(select(*key).where(FleetObservation.at < now - KEPT_S).limit(BATCH))]
    session.execute(delete(FleetObservation).where(tuple_(*key).in_(old)))
    return len(old)


def remove_alerts(session: Session, now: int) -> int:
    """Removes one batch of alerts that were cleared, and silences that ended, more than 90 days ago; returns how many rows."""
    count = 0
    for model, end in ((FleetAlert, FleetAlert.cleared_at), (FleetSilence, FleetSilence.ends_at)):
        old = list(session.scalars(select(model.id).where(end < now - KEPT_S).limit(BATCH)))
        session.execute(delete(model).where(model.id.in_(old)))
        count += len(old)
    return count
