"""Takes in the usage that agents report, and tells how much of which license was used on which day.

An agent reports totals, and the greatest of each epoch is kept: so a report that comes again, late or not at all counts nothing
twice and loses nothing. What a total has grown by belongs to the UTC day on which the server gets it, whatever the machine's
clock says: a day that is over never changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from contracts.contact.usage import MeterTotal
from server.registry import audit
from server.registry.models.core import FormerLicense, License
from server.registry.models.seats import FloatingLicense
from server.registry.models.usage import UsageCounter, UsageDay
from server.registry.upkeep.retention import DAY_S

MAX_EPOCHS = 256
"""Epochs of one agent that are kept: four times what a machine counts at once."""
MAX_AMOUNT = 2**53 - 1
"""The greatest amount of a day: what every JSON parser reads exactly."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The epochs whose totals were not taken: `contracts.contact.usage.UsageReply` explains both."""

    behind: tuple[str, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Used:
    """What one agent has reported on one day. `day`: days since 1970 UTC; `since`: seconds since 1970 UTC, or None."""

    day: int
    license_id: str
    meter: str
    agent_id: str
    amount: int
    since: int | None


@dataclass(frozen=True, slots=True)
class Sum:
    """What was reported of a license and a meter in some days."""

    license_id: str
    meter: str
    amount: int
    first_day: int
    last_day: int


@dataclass(frozen=True, slots=True)
class Which:
    """Which usage: from one day until before another, and what else is named."""

    begin: int = 0
    end: int = 2**31
    license_id: str | None = None
    meter: str | None = None
    agent_id: str | None = None
    customer: str | None = None


class UsageTotals:
    """Takes in what agents report."""

    def take(self, session: Session, agent_id: str, totals: Sequence[MeterTotal], challenged_at: int, now: int) -> Taken:
        """As the function `take`."""
        return take(session, agent_id, totals, challenged_at, now)


def take(session: Session, agent_id: str, totals: Sequence[MeterTotal], challenged_at: int, now: int) -> Taken:
    """Takes in what an agent reports.

    Args:
        session: of a writing transaction that has locked the agent.
        agent_id: the agent.
        totals: of its counters.
        challenged_at: when the server made the challenge that the report answers, seconds since 1970 UTC.
        now: seconds since 1970 UTC.
    """
    mine = UsageCounter.agent_id == agent_id
    epochs = [each.epoch for each in totals]
    rows = {row.epoch: row for row in session.scalars(select(UsageCounter).where(mine, UsageCounter.epoch.in_(epochs)))}
    room = MAX_EPOCHS - (session.scalar(select(func.count()).select_from(UsageCounter).where(mine)) or 0)
    own = _licenses_of(session, agent_id, {each.license for each in totals if each.epoch not in rows})
    behind: list[str] = []
    refused: list[str] = []
    lower: list[tuple[UsageCounter, int]] = []
    for each in totals:
        row = rows.get(each.epoch)
        if row is None:
            if each.license not in own or room <= 0:
                refused.append(each.epoch)
                continue
            room -= 1
            row = rows[each.epoch] = UsageCounter(
                agent_id=agent_id, epoch=each.epoch, license_id=each.license, meter=each.meter, total=0,
                counted_at=now, challenged_at=challenged_at,
            )  # fmt: skip
            session.add(row)
            _add(session, row, each.total, None, now)
        elif (row.license_id, row.meter) != (each.license, each.meter):
            refused.append(each.epoch)
        elif each.total > row.total:
            _add(session, row, each.total, row.counted_at, now)
        elif each.total < row.total and challenged_at > row.challenged_at:
            # A report that was delayed on its way answers an older challenge, and says nothing new.
            behind.append(each.epoch)
            lower.append((row, each.total))
        row.challenged_at = max(row.challenged_at, challenged_at)
    # Last: the audit's counter is locked from here on.
    for row, total in lower:
        _alert(session, row, total, now)
    return Taken(tuple(behind), tuple(refused))


def _licenses_of(session: Session, agent_id: str, licenses: set[str]) -> set[str]:
    """Those of these licenses that the agent has or had."""
    if not licenses:
        return set()
    present = select(License.jti).where(License.agent_id == agent_id, License.jti.in_(licenses))
    former = select(FormerLicense.jti).where(FormerLicense.agent_id == agent_id, FormerLicense.jti.in_(licenses))
    before = select(UsageCounter.license_id).where(UsageCounter.agent_id == agent_id, UsageCounter.license_id.in_(licenses))
    return {*session.scalars(present), *session.scalars(former), *session.scalars(before)}


def _sold(session: Session, license_id: str) -> str:
    """The license that was sold: that of a seat is the floating one, also once the seat has gone."""
    row = session.get(License, license_id)
    if row is not None:
        return row.seat_of or license_id
    floating, _sign, number = license_id.rpartition("#")
    is_seat = number.isdigit() and session.get(FloatingLicense, floating) is not None
    return floating if is_seat else license_id


def _add(session: Session, row: UsageCounter, total: int, since: int | None, now: int) -> None:
    grown, day, license_id = total - row.total, now // DAY_S, _sold(session, row.license_id)
    row.total, row.counted_at = total, now
    # A report locks its agent, so nobody else adds this row.
    found = session.get(UsageDay, (license_id, row.meter, day, row.agent_id))
    if found is None:
        found = UsageDay(
            license_id=license_id, meter=row.meter, day=day, agent_id=row.agent_id, amount=0, since=since
        )  # fmt: skip
        session.add(found)
    elif since is None or found.since is None:
        found.since = None
    else:
        found.since = min(found.since, since)
    found.amount = min(found.amount + grown, MAX_AMOUNT)


def _alert(session: Session, row: UsageCounter, total: int, now: int) -> None:
    if row.alerted_at is not None and now - row.alerted_at < DAY_S:
        return
    row.alerted_at = now
    audit.record(
        session, f"agent {row.agent_id}", "alert.usage_went_back", "alert", now,
        license=row.license_id, meter=row.meter, epoch=row.epoch, total=total, before=row.total,
    )  # fmt: skip


def listed(session: Session, which: Which, after: Used | None, limit: int) -> list[Used]:
    """Usage by day, license, meter and agent, at most so many rows behind one."""
    place = tuple_(UsageDay.day, UsageDay.license_id, UsageDay.meter, UsageDay.agent_id)
    query = _chosen(select(UsageDay), which).order_by(UsageDay.day, UsageDay.license_id, UsageDay.meter, UsageDay.agent_id)
    if after is not None:
        query = query.where(place > (after.day, after.license_id, after.meter, after.agent_id))
    return [
        Used(row.day, row.license_id, row.meter, row.agent_id, row.amount, row.since)
        for row in session.scalars(query.limit(limit))
    ]


def sums(session: Session, which: Which, after: Sum | None, limit: int) -> list[Sum]:
    """Usage by license and meter, at most so many rows behind one."""
    key = UsageDay.license_id, UsageDay.meter
    columns = *key, func.sum(UsageDay.amount), func.min(UsageDay.day), func.max(UsageDay.day)
    query = _chosen(select(*columns), which).group_by(*key).order_by(*key).limit(limit)
    if after is not None:
        query = query.where(tuple_(*key) > (after.license_id, after.meter))
    return [
        Sum(license_id, meter, min(int(amount), MAX_AMOUNT), first, last)
        for license_id, meter, amount, first, last in session.execute(query)
    ]


def _chosen(query: Any, which: Which) -> Any:
    query = query.where(UsageDay.day >= which.begin, UsageDay.day < which.end)
    named = (UsageDay.license_id, which.license_id), (UsageDay.meter, which.meter), (UsageDay.agent_id, which.agent_id)
    for column, value in named:
        query = query if value is None else query.where(column == value)
    if which.customer is not None:
        owned = select(License.jti).where(License.customer_id == which.customer)
        query = query.where(UsageDay.license_id.in_(owned))
    return query
