"""Judges every fleet at the end of each interval, once, whatever processes there are.

How far a fleet was judged is in its row, which the judgment locks: a second process that comes to the same interval, since the
first one's lease has ended, finds it judged. Intervals that nobody has judged for more than an hour are left out.
"""

import logging

import msgspec
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.fleet.fleets import figures
from server.fleet.fleets.figures import Figures
from server.registry.database import Database
from server.registry.later import Records
from server.registry.models.fleets import Fleet
from server.registry.models.monitoring import FleetWatch
from server.registry.models.rollouts import Rollout, RolloutGroup

from . import alerts, rules
from .intervals import INTERVAL_S, settled_until
from .judgement import Judgement, judge, needed
from .observations import between, row_of
from .retention import make_room
from .rules import Thresholds, thresholds_of
from .views import standings_of

CATCH_UP = 12
"""Intervals that are judged in one run; what is further back has become history meanwhile."""
_WRONG_CLOCK_S = 3600
_NEW = text(
    "INSERT INTO fleet_watch (fleet_id, thresholds, judged_until, standings, updated_at, revision) "
    "VALUES (:fleet, :thresholds, :until, '{}', :now, 1) ON CONFLICT (fleet_id) DO NOTHING"
)
_log = logging.getLogger("license_server")


def row_for(session: Session, fleet_id: str, now: int) -> FleetWatch:
    """How a fleet is watched, locked; made if it is missing.

    Args:
        session: of a writing transaction.
        fleet_id: a fleet that exists.
        now: seconds since 1970 UTC.
    """
    until = settled_until(now) - INTERVAL_S
    usual = rules.text_of(Thresholds())
    session.execute(_NEW, {"fleet": fleet_id, "thresholds": usual, "until": until, "now": now})
    return session.get_one(FleetWatch, fleet_id, with_for_update=True, populate_existing=True)


class Watch:
    """Judges fleets.

    Args:
        database: the registry's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def run(self, now: int) -> int:
        """Judges what is due; returns how many intervals of fleets were judged.

        Args:
            now: seconds since 1970 UTC.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        self._make_room(now)
        with self._database.read() as session:
            fleets = list(session.scalars(select(Fleet.id).order_by(Fleet.id)))
            known = figures.known(session)
        count = 0
        for fleet_id in fleets:
            try:
                with self._database.write() as session:
                    count += self._judge(session, fleet_id, known, now)
            except RegistryError as problem:
                # One fleet whose thresholds or zone cannot be used any more keeps none of the others from being judged.
                fields = {"fleet": fleet_id, "why": str(problem)[:300]}
                _log.error("a fleet could not be judged", extra={"fields": fields})
        with self._database.write() as session:
            records = Records()
            alerts.forget_fleets(session, now, records)
            records.write(session)
        return count

    def _make_room(self, now: int) -> None:
        try:
            with self._database.write() as session:
                make_room(session, now)
        except OperationalError as problem:
            # Somebody reads the table for long. There is room for a week, and another partition for what comes later.
            _log.warning("partitions could not be made now", extra={"fields": {"kind": type(problem.orig).__name__}})

    def _judge(self, session: Session, fleet_id: str, known: Figures | None, now: int) -> int:
        if session.get(Fleet, fleet_id) is None:
            return 0
        until, watch = settled_until(now), row_for(session, fleet_id, now)
        if watch.judged_until > until + _WRONG_CLOCK_S:
            watch.judged_until = until - INTERVAL_S  # written while a clock was wrong
        if watch.judged_until >= until:
            return 0
        begin = max(watch.judged_until, until - CATCH_UP * INTERVAL_S)
        self._count(session, watch, until - INTERVAL_S, known)
        thresholds, standings, records = thresholds_of(watch.thresholds), standings_of(watch.standings), Records()
        zone, found = rules.zone_for(thresholds), None
        for at in range(begin, until, INTERVAL_S):
            spans = needed(at, thresholds, zone)
            found = judge(between(session, fleet_id, spans), thresholds, zone, standings, at)
            standings = found.standings
            alerts.follow(session, fleet_id, found, now, records)
        assert found is not None
        _keep(watch, found, until)
        records.write(session)  # last: it locks the log's counter
        return (until - begin) // INTERVAL_S

    def _count(self, session: Session, watch: FleetWatch, at: int, known: Figures | None) -> None:
        """Notes of the interval what is counted from outside: devices, late ones, and updates that failed since the last time.

        The row says that the fleet was observed, also if no device came.
        """
        row = row_of(session, watch.fleet_id, at)
        group = None if known is None or known.at < at - INTERVAL_S else known.fleets.get(watch.fleet_id)
        if group is not None:
            row.devices, row.late = group.total, group.late
        failed = update_failures(session, watch.fleet_id)
        row.updates += max(0, failed - (failed if watch.update_failures is None else watch.update_failures))
        watch.update_failures = failed
        session.flush()


def update_failures(session: Session, fleet_id: str) -> int:
    """How many devices have failed in all rollouts of a fleet. Reads their groups, of which there are few."""
    query = select(func.sum(RolloutGroup.failed)).join(Rollout, Rollout.id == RolloutGroup.rollout_id)
    return int(session.scalar(query.where(Rollout.fleet_id == fleet_id)) or 0)


def _keep(watch: FleetWatch, found: Judgement, until: int) -> None:
    watch.standings = msgspec.json.encode(found.standings).decode()
    watch.health = msgspec.json.encode(found.health).decode()
    watch.judged_until = until
