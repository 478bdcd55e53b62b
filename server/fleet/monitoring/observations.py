"""Writes what was noted of devices to the observations of their fleets, and reads observations."""

import logging
from collections.abc import Iterable, Sequence

from sqlalchemy import or_, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.fleet.fleets.membership import among
from server.registry.database import Database
from server.registry.models.fleets import Fleet
from server.registry.models.monitoring import FleetObservation

from . import latency
from .contacts import Contacts, Failure, Noted, failures, slowest
from .series import Point

BATCH = 2000
"""Devices whose fleets are looked up together."""
_NEW = text(
    "INSERT INTO fleet_observation (fleet_id, at, contacts, failed, refused, rotations, updates, latencies) "
    "VALUES (:fleet, :at, 0, 0, 0, 0, 0, :none) ON CONFLICT (fleet_id, at) DO NOTHING"
)
_log = logging.getLogger("license_server")


class _Count:
    """Counts of a fleet in an interval."""

    __slots__ = ("contacts", "failed", "latencies", "refused", "rotations")

    def __init__(self) -> None:
        self.contacts = self.failed = self.refused = self.rotations = 0
        self.latencies = list(latency.NONE)

    def add(self, noted: int) -> None:
        found = failures(noted)
        self.contacts += 1
        self.failed += bool(found)
        self.refused += Failure.REFUSED in found
        self.rotations += Failure.ROTATION in found
        self.latencies[slowest(noted)] += 1


def write(database: Database, contacts: Contacts, *, everything: bool = False) -> int:
    """Writes the intervals that are over; returns how many contacts were counted, one for each fleet of a device.

    Which fleets a device belongs to is asked for many devices at once, outside the transaction that writes. That one adds to
    the rows of all fleets in the order of their ids, so that processes that do the same wait for each other and nothing else.

    Args:
        database: the registry's.
        contacts: of this process.
        everything: the present interval too, since the process ends.

    Raises:
        SQLAlchemyError: the database does not answer. What is not written is kept for the next time.
    """
    taken, count = contacts.take(everything=everything), 0
    while taken:
        at = min(taken)
        try:
            count += _write(database, at, taken[at])
        except SQLAlchemyError:
            for begin, noted in taken.items():
                contacts.give_back(begin, noted)
            raise
        noted = taken.pop(at)
        if noted.unnoted:
            fields = {"interval": at, "contacts": noted.unnoted}
            _log.warning(
                "more devices than this process can note: contacts are missing in the figures", extra={"fields": fields}
            )
    return count


def _write(database: Database, at: int, noted: Noted) -> int:
    counts = _by_fleet(database, noted)
    with database.write() as session:
        for fleet_id in sorted(counts):
            found, row = counts[fleet_id], row_of(session, fleet_id, at)
            row.contacts += found.contacts
            row.failed += found.failed
            row.refused += found.refused
            row.rotations += found.rotations
            row.latencies = latency.text_of(latency.added((latency.counts_of(row.latencies), found.latencies)))
    return sum(each.contacts for each in counts.values())


def _by_fleet(database: Database, noted: Noted) -> dict[str, _Count]:
    counts: dict[str, _Count] = {}
    ids = list(noted.devices)
    with database.read() as session:
        fleets = list(session.scalars(select(Fleet)))
    for begin in range(0, len(ids), BATCH):
        batch = ids[begin : begin + BATCH]
        for fleet in fleets:
            try:
                with database.read() as session:
                    mine = among(session, fleet, batch)
            except RegistryError as problem:
                # Its selection cannot be answered, which each list of its devices says too; the other fleets are counted.
                fields = {"fleet": fleet.id, "why": str(problem)[:300]}
                _log.warning("the devices of a fleet cannot be found", extra={"fields": fields})
                continue
            for device_id in mine:
                counts.setdefault(fleet.id, _Count()).add(noted.devices[device_id])
    return counts


def row_of(session: Session, fleet_id: str, at: int) -> FleetObservation:
    """The row of a fleet's interval, locked; made if it is missing."""
    session.execute(_NEW, {"fleet": fleet_id, "at": at, "none": latency.text_of(latency.NONE)})
    return session.get_one(FleetObservation, (fleet_id, at), with_for_update=True, populate_existing=True)


def between(session: Session, fleet_id: str, spans: Sequence[tuple[int, int]]) -> dict[int, Point]:
    """The observations of a fleet whose intervals begin in one of some spans, by that begin.

    Args:
        session: of any transaction.
        fleet_id: the fleet.
        spans: first and last begin of each, seconds since 1970 UTC.
    """
    if not spans:
        return {}
    within = or_(*(FleetObservation.at.between(first, last) for first, last in spans))
    return points(session.scalars(select(FleetObservation).where(FleetObservation.fleet_id == fleet_id, within)))


def points(rows: Iterable[FleetObservation]) -> dict[int, Point]:
    """Rows as points of a series, by the begin of their intervals."""
    return {
        row.at: Point(row.contacts, row.failed + row.updates, latency.counts_of(row.latencies), row.devices, row.late)
        for row in rows
    }
