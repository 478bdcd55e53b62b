"""Declares the tables of the fleets' monitoring. Times are seconds since 1970 UTC."""

from sqlalchemy import BigInteger, Float, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class FleetObservation(Base):
    """What was observed of a fleet in one interval, which begins at `at`. On PostgreSQL each day is a partition.

    `contacts` counts devices that have contacted the server, and `failed` those of them that failed at something; one may be in
    both of `refused` and `rotations`. `latencies` counts the contacts by their latency: numbers with commas between them, for
    `server.fleet.monitoring.latency.BOUNDS`. `devices` and `late` are missing if nobody has counted at the time; `updates`
    counts devices that failed in rollouts.
    """

    __tablename__ = "fleet_observation"
    __table_args__ = {"postgresql_partition_by": "RANGE (at)"}  # noqa: RUF012 -- declared so by SQLAlchemy
    fleet_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    contacts: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    refused: Mapped[int] = mapped_column(BigInteger)
    rotations: Mapped[int] = mapped_column(BigInteger)
    updates: Mapped[int] = mapped_column(BigInteger)
    latencies: Mapped[str] = mapped_column(Text)
    devices: Mapped[int | None] = mapped_column(BigInteger)
    late: Mapped[int | None] = mapped_column(BigInteger)


class FleetWatch(Base):
    """How a fleet is judged, and how far that is. `thresholds` is JSON, what operators have set.

    `judged_until` is the end of the last interval that was judged. `standings` is JSON, how each condition stands; `health` is
    JSON, what the last judgment found, missing before the first. `update_failures` is the number of failed devices of the
    fleet's rollouts at that time.
    """

    __tablename__ = "fleet_watch"
    fleet_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    thresholds: Mapped[str] = mapped_column(Text)
    judged_until: Mapped[int] = mapped_column(BigInteger)
    standings: Mapped[str] = mapped_column(Text)
    health: Mapped[str | None] = mapped_column(Text)
    update_failures: Mapped[int | None] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)


class FleetAlert(Base):
    """An alert. `kind` and `severity`: see `server.fleet.monitoring.rules`; `state`: raised, acknowledged, cleared.

    `value` is what was measured when it was raised or became more severe, `bound` what it was compared with. `told` is the
    severity that was last told to people; missing before the first time, as while a silence lasts.
    """

    __tablename__ = "fleet_alert"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    fleet_id: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(32))
    severity: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    value: Mapped[float] = mapped_column(Float)
    bound: Mapped[float] = mapped_column(Float)
    detail: Mapped[str] = mapped_column(Text)
    told: Mapped[str | None] = mapped_column(String(16))
    raised_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    acknowledged_at: Mapped[int | None] = mapped_column(BigInteger)
    acknowledged_by: Mapped[str | None] = mapped_column(String(128))
    cleared_at: Mapped[int | None] = mapped_column(BigInteger)


class FleetSilence(Base):
    """Alerts that are sent to nobody until `ends_at`: those of one fleet or of all, of one kind or of all."""

    __tablename__ = "fleet_silence"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    fleet_id: Mapped[str | None] = mapped_column(String(64))
    kind: Mapped[str | None] = mapped_column(String(32))
    begins_at: Mapped[int] = mapped_column(BigInteger)
    ends_at: Mapped[int] = mapped_column(BigInteger)
    created_by: Mapped[str] = mapped_column(String(128))
    comment: Mapped[str] = mapped_column(Text)


_OPEN = FleetAlert.state != "cleared"
Index("fleet_observation_time", FleetObservation.at)
Index("fleet_alert_open", FleetAlert.fleet_id, FleetAlert.kind, unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN)
Index("fleet_alert_cleared", FleetAlert.cleared_at)
Index("fleet_alert_of_fleet", FleetAlert.fleet_id, FleetAlert.id)
