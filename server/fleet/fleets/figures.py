"""Counts devices, of all and of each fleet, for metrics and lists: at an interval, and never for a scrape.

To count reads every device: the time of the last contact has no index, because each check-in would have to keep it. So a job
counts (`server.serving`), and the counts wait in the registry for whoever asks, with the time when they were made. What is
counted are devices in service: neither blocked nor retired.
"""

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, and_, case, func, literal, or_, select
from sqlalchemy.orm import Session

from server.agents.registry import ACTIVE, REVOKED
from server.fleet.devices.connection import INTERVAL_S, tolerance
from server.registry.database import Database
from server.registry.dialect import plan_each_time
from server.registry.models.core import Agent, Certificate, Setting
from server.registry.models.fleets import Device, DeviceSeen, Fleet

from .membership import members

NAME = "devices.figures"
"""The setting that has the counts, in JSON."""
DAY_S = 86_400
DAYS = (0, 3, 7, 10, 14, 21, 30, 60, 90)
"""Bounds of the histogram of days until a certificate ends; 0 has those that have ended."""


class Certificates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The certificates of devices in service, of each device the one that ends last.

    Attributes:
        within: how many end within each of `DAYS`.
        count: how many there are.
        days: the sum of their days; one that has ended has 0.
    """

    within: tuple[int, ...]
    count: int
    days: float

    @property
    def average(self) -> float | None:
        """Days until they end on average; None if there are none."""
        return self.days / self.count if self.count else None


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts of some devices: those in service, those whose last contact is not too long ago, and their certificates.

    `late` are those that have had contact, and have left out one since.
    """

    total: int
    connected: int
    certificates: Certificates
    late: int = 0


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All counts. `at` is when they were made, seconds since 1970 UTC; `fleets` is by id."""

    at: int
    devices: Group
    fleets: dict[str, Group]


def known(session: Session) -> Figures | None:
    """The last counts; None before the first."""
    row = session.get(Setting, NAME)
    try:
        return None if row is None else msgspec.json.decode(row.value, type=Figures)
    except msgspec.ValidationError:
        return None  # another release has counted; this one does so soon


def count(database: Database, now: int) -> Figures:
    """Counts, and keeps the counts. Each fleet is counted in a transaction of its own.

    Args:
        database: the registry's.
        now: seconds since 1970 UTC.
    """
    with database.read() as session:
        everything = _group(session, None, now)
        ids = list(session.scalars(select(Fleet.id).order_by(Fleet.rank)))
    fleets = {}
    for fleet_id in ids:
        with database.read() as session:
            fleet = session.get(Fleet, fleet_id)
            if fleet is not None:
                fleets[fleet_id] = _group(session, members(session, fleet), now)
    found = Figures(now, everything, fleets)
    with database.write() as session:
        session.merge(Setting(name=NAME, value=msgspec.json.encode(found).decode()))
    return found


def _group(session: Session, among: Select[str] | None, now: int) -> Group:
    plan_each_time(session)
    seen = func.count(func.coalesce(Agent.last_seen, DeviceSeen.at))
    joined: Any = select(func.count(), func.count(case((_connected(now), 1))), seen)
    query = joined.select_from(Device).outerjoin(Agent, Agent.id == Device.id)
    query = query.outerjoin(DeviceSeen, DeviceSeen.device_id == Device.id).where(*_in_service(among))
    total, connected, ever = session.execute(query).one()
    return Group(total, connected, _certificates(session, among, now), ever - connected)


def _in_service(among: Select[str] | None) -> list[ColumnElement[bool]]:
    agent_serves = or_(Agent.id.is_(None), Agent.status != REVOKED)  # one that retired is revoked too
    return [agent_serves, Device.blocked_at.is_(None), *(() if among is None else (Device.id.in_(among),))]


def _connected(now: int) -> ColumnElement[bool]:
    last = func.coalesce(Agent.last_seen, DeviceSeen.at)
    kinds = [(Device.kind == kind, literal(now - tolerance(kind))) for kind in INTERVAL_S]
    since: ColumnElement[int] = case(*kinds, else_=literal(now - tolerance("")))
    return and_(last.is_not(None), last >= since)


def _certificates(session: Session, among: Select[str] | None, now: int) -> Certificates:
    last = func.max(Certificate.not_after).label("ends")
    mine = select(last).join(Agent, Agent.id == Certificate.agent_id).join(Device, Device.id == Agent.id)
    ends = mine.where(Certificate.state == ACTIVE, *_in_service(among)).group_by(Certificate.agent_id).subquery()
    left = case((ends.c.ends > now, ends.c.ends - now), else_=0)
    bounds = [func.count(case((left <= days * DAY_S, 1))) for days in DAYS]
    count_, seconds, *within = session.execute(select(func.count(), func.sum(left), *bounds)).one()
    return Certificates(tuple(within), count_, float(seconds or 0) / DAY_S)
