"""Keeps the terms of floating licenses, their seats, and the sites of agents. `leases` gives seats to agents.

A floating license belongs to a site and is on no machine. A seat is a license of its own, whose id names the floating one; what
an operator does to the floating license happens to its seats. A seat counts until its agent has said that it refuses it, or
until its newest token has ended at the agent. Locks are taken in this order: agents by id, floating licenses by id, seats.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from contracts.contact.seats import MAX_FLOATING, MAX_FLOATING_ID_CHARS, MAX_GRACE_S, MAX_LEASE_S, SEAT_MARK
from server.agents import device_rows
from server.agents.registry import enrolled
from server.base.errors import Conflict, Invalid, NotFound
from server.licensing.states import changes
from server.licensing.states.history import changed
from server.licensing.states.license_states import Event, locked, state_of, stepped
from server.registry import audit, events
from server.registry.database import next_number
from server.registry.models.core import Agent, FormerLicense, License
from server.registry.models.seats import FloatingLicense, Seat

from .customers import site as site_row

CLOCK_MARGIN_S = 300
"""How much longer than its token a seat counts: the clock of a machine may be slow."""
MAX_SEAT_COUNT = 10_000
HOUR_S, DAY_S = 3600, 86_400
USAGE_AFTER_S = 90 * DAY_S
"""How long after its end usage of a seat is still taken from the agent that had it."""
BOUNDS = {"lease": (600, MAX_LEASE_S), "grace": (0, MAX_GRACE_S), "idle": (HOUR_S, 90 * DAY_S)}
"""Seconds that each time of a floating license may have. A seat that is given back costs a commit of the till's sealed
store, which wears a TPM: so no till gives one back after less than an hour."""


class Mode(StrEnum):
    """What happens where all seats are taken."""

    HARD = "hard"
    """A till gets none."""
    SOFT = "soft"
    """A till gets one beyond the number, and the operators learn of it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a floating license.

    Attributes:
        seats: how many tills may have one at once.
        mode: what happens to one more.
        lease: seconds after which a till renews its seat.
        grace: seconds that a seat lasts beyond that: how long a till works without a contact, at least.
        idle: seconds after which a till gives back a seat that nobody has used.
    """

    seats: int
    mode: Mode = Mode.HARD
    lease: int = 4 * HOUR_S
    grace: int = 3 * DAY_S
    idle: int = 12 * HOUR_S

    def as_json(self) -> str:
        """As a policy keeps them."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Terms":
        """Of a policy."""
        held = json.loads(text)
        return cls(held["seats"], Mode(held["mode"]), held["lease"], held["grace"], held["idle"])

    def check(self) -> None:
        """Returns if all are within their bounds; raises Invalid."""
        if not 1 <= self.seats <= MAX_SEAT_COUNT:
            raise Invalid(f"a floating license has 1 to {MAX_SEAT_COUNT} seats, not {self.seats}")
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise Invalid(f"{name} must be {least} to {most} seconds, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class FloatingRow:
    """A floating license as operators see it. Times are seconds since 1970 UTC.

    Attributes:
        license_id: its id.
        site: where its seats are used.
        state: as in `license_states`.
        seats: how many there are.
        taken: how many count as taken now.
        over: how many of those are beyond `seats`.
        mode: `Mode`.
        lease: as in `Terms`, like the next two.
        grace: seconds.
        idle: seconds.
        expires: when the license ends.
    """

    license_id: str
    site: str | None
    state: str
    seats: int
    taken: int
    over: int
    mode: str
    lease: int
    grace: int
    idle: int
    expires: int


@dataclass(frozen=True, slots=True)
class SeatRow:
    """A seat that counts. Times are seconds since 1970 UTC.

    Attributes:
        seat: its id.
        license_id: the floating license.
        agent_id: the agent that has it.
        taken_at: when it got it.
        lease_until: when it renews it.
        grace_until: when its token ends.
        counted_until: until when the seat counts, unless it is given back.
        over: it was given beyond the number of seats.
    """

    seat: str
    license_id: str
    agent_id: str
    taken_at: int
    lease_until: int
    grace_until: int
    counted_until: int
    over: bool


def set_terms(session: Session, license_id: str, terms: Terms, now: int) -> FloatingRow:
    """Makes a license that is on no machine a floating one, or changes the terms of one.

    Fewer seats take none away at once: the newest are not renewed in hard mode, and end with their grace.

    Args:
        session: of a writing transaction.
        license_id: a license of a site.
        terms: its terms.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such license.
        Conflict: it is on a machine, has no site, is a trial, has ended or is revoked; or its site has too many.
        Invalid: the terms are out of bounds, or its id is too long for seats.
    """
    share(session, license_id, terms, now)
    record_terms(session, license_id, terms, now)
    return one(session, license_id, now)


def share(session: Session, license_id: str, terms: Terms, now: int) -> None:
    """As `set_terms`, without the audit record, which locks the audit's counter: for many licenses at once."""
    terms.check()
    if len(license_id) > MAX_FLOATING_ID_CHARS:
        raise Invalid(f"the id of a floating license has at most {MAX_FLOATING_ID_CHARS} characters: its seats add some")
    place = session.scalar(select(License.site_id).where(License.jti == license_id))
    _tell_site(session, place, now)
    row, _agent = locked(session, license_id)
    _require_fit(row, place)
    held = session.get(FloatingLicense, license_id, populate_existing=True)
    new = held is None
    if held is None:
        held = FloatingLicense(license_id=license_id, last_number=0)
        others = select(func.count()).select_from(FloatingLicense).join(License, License.jti == FloatingLicense.license_id)
        if (session.scalar(others.where(License.site_id == place)) or 0) >= MAX_FLOATING:
            raise Conflict(f"site {place!r} has {MAX_FLOATING} floating licenses, which is the limit")
        stepped(row, Event.SHARED, now)
        row.floating = True
    held.seats, held.mode, held.updated_at = terms.seats, terms.mode.value, now
    held.lease_s, held.grace_s, held.idle_s = terms.lease, terms.grace, terms.idle
    session.add(held)
    if new:
        like_seats = License.jti.startswith(f"{license_id}{SEAT_MARK}", autoescape=True)
        other = session.scalar(select(License.jti).where(like_seats).limit(1))
        if other is not None:
            raise Conflict(
                f"there is a license {other!r}, whose id looks like that of a seat of {license_id!r}: choose another"
            )
        changed(session, row, Event.SHARED, now, site=place)
    session.flush()
    events.emit(session, "license.seats", now, license=license_id, seats=terms.seats, mode=terms.mode.value)


def record_terms(session: Session, license_id: str, terms: Terms, now: int) -> None:
    """Records the terms of a floating license in the audit, when the transaction needs no other lock any more."""
    about: dict[str, Any] = {"seats": terms.seats, "mode": terms.mode.value}
    audit.record(session, audit.ADMIN, "license.seats", "ok", now, license=license_id, **about)


def require_no_seat(session: Session, license_id: str) -> None:
    """Returns unless a new license with this id could be taken for a seat of a floating one; raises Conflict."""
    floating, mark, number = license_id.rpartition(SEAT_MARK)
    if mark and number.isdigit() and session.get(FloatingLicense, floating) is not None:
        raise Conflict(f"license {license_id!r} would look like a seat of the floating license {floating!r}: choose another id")


def require_place(row: License, site: str | None) -> None:
    """Returns if a license that is issued again stays where its seats are; raises Conflict."""
    if row.floating and row.site_id != site:
        raise Conflict(f"license {row.jti!r} is a floating one of site {row.site_id!r}, and stays there; choose another id")


def _require_fit(row: License, place: str | None) -> None:
    what = f"license {row.jti!r}"
    if place is None or row.site_id != place:
        raise Conflict(f"{what} has no site: issue one with --site, because seats are shared by the tills of a site")
    if row.agent_id is not None:
        raise Conflict(f"{what} is on agent {row.agent_id!r}: 'license-server licenses release {row.jti}' first")


def assign_site(session: Session, agent_id: str, place: str | None, now: int) -> None:
    """Says at which site an agent's machine is. Its seats of another site end at its next contact.

    Args:
        session: of a writing transaction.
        agent_id: the agent.
        place: the site; None for none.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such agent or site.
    """
    agent = enrolled(session, agent_id)
    if place is not None:
        site_row(session, place)
    was, agent.site_id, agent.updated_at = agent.site_id, place, now
    device_rows.keep(session, agent, now)
    changes.changed(session, agent_id, now, [])
    ids = {name: each for name, each in (("site", place), ("was", was)) if each is not None}
    events.emit(session, "agent.site", now, agent=agent_id, **ids)
    audit.record(session, audit.ADMIN, "agent.site", "ok", now, agent=agent_id, **ids)


def free(session: Session, seat_id: str, now: int) -> SeatRow:
    """Frees a seat at once, although its machine may use it until its token ends: the operator knows that it does not.

    Args:
        session: of a writing transaction.
        seat_id: the seat.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: no such seat counts.
    """
    known = session.get(Seat, seat_id)
    if known is None or known.counted_until <= now:
        raise NotFound(f"there is no seat {seat_id!r} that counts; 'license-server seats show LICENSE' lists them")
    agent = session.get(Agent, known.agent_id, with_for_update=True)
    session.get(License, known.license_id, with_for_update=True)
    row = session.get(Seat, seat_id, populate_existing=True)
    if row is None:
        raise NotFound(f"seat {seat_id!r} was given back at this moment")
    found = _seat_row(row)
    drop(session, row)
    if agent is not None and row.grace_until > now:
        changes.left(session, agent.id, seat_id, row.grace_until, now)
    events.emit(session, "seat.freed", now, seat=seat_id, license=row.license_id, agent=row.agent_id)
    audit.record(
        session, audit.ADMIN, "seat.freed", "ok", now, seat=seat_id, license=row.license_id, agent=row.agent_id,
        until=row.grace_until,
    )  # fmt: skip
    return found


# What other parts ask


def counted(session: Session, license_id: str, now: int) -> list[Seat]:
    """The seats of a floating license that count, the longest held first."""
    mine = Seat.license_id == license_id, Seat.counted_until > now
    return list(session.scalars(select(Seat).where(*mine).order_by(Seat.number).execution_options(populate_existing=True)))


def taken_since(session: Session, agent_id: str, license_id: str, since: int) -> int:
    """How many seats of a floating license an agent has taken since a time and given back; a seat's number tells when."""
    like = FormerLicense.jti.startswith(f"{license_id}{SEAT_MARK}", autoescape=True)
    former = session.scalars(select(FormerLicense.jti).where(FormerLicense.agent_id == agent_id, like))
    numbers = [jti.rpartition(SEAT_MARK)[2] for jti in former]
    return sum(number.isdigit() and int(number) > since for number in numbers)


def drop(session: Session, seat: Seat) -> None:
    """Deletes a seat and its license. The caller has locked its agent and its floating license."""
    _remember(session, [seat])
    session.execute(delete(License).where(License.jti == seat.id, License.seat_of.is_not(None)))
    session.delete(seat)
    session.flush()


def _remember(session: Session, gone: Sequence[Seat]) -> None:
    """Notes whose the seats were: an agent may report later what was used with one."""
    there = set(session.scalars(select(Agent.id).where(Agent.id.in_({seat.agent_id for seat in gone}))))
    for seat in gone:
        if seat.agent_id in there:
            # No change of the agent's licenses: its leases say which seats it has.
            until = seat.counted_until + USAGE_AFTER_S
            session.merge(FormerLicense(agent_id=seat.agent_id, jti=seat.id, change_number=0, expires_at=until))


def follow(session: Session, row: License, now: int, *, revocations: str | None = None) -> None:
    """Does to the seats of a floating license what has been done to it: suspended, reinstated, revoked.

    Args:
        session: of a writing transaction that has locked the license and its seats' agents (`license_states.locked`).
        row: the license.
        now: seconds since 1970 UTC.
        revocations: the counter of revocation lists, if it was revoked.
    """
    for seat in counted(session, row.jti, now):
        license = session.get(License, seat.id, with_for_update=True, populate_existing=True)
        agent = session.get(Agent, seat.agent_id)
        if license is None or agent is None:
            continue
        license.suspended_at, license.revoked_at, license.updated_at = row.suspended_at, row.revoked_at, now
        if revocations is not None:
            agent.revocations = next_number(session, revocations, now)
        else:
            changes.changed(session, agent.id, now, [license.jti])


def remove_ended(session: Session, now: int, batch: int = 500) -> int:
    """Deletes seats that have not counted for a day, with their licenses; returns how many.

    Args:
        session: of a writing transaction.
        now: seconds since 1970 UTC, by housekeeping's own time.
        batch: at most so many.
    """
    due = select(Seat).where(Seat.counted_until <= now - DAY_S).order_by(Seat.counted_until).limit(batch)
    ended = list(session.scalars(due))
    ids = sorted(seat.id for seat in ended)
    if ids:
        _remember(session, ended)
        session.execute(delete(License).where(License.jti.in_(ids), License.seat_of.is_not(None)))
        session.execute(delete(Seat).where(Seat.id.in_(ids)))
    return len(ids)


# Lists


def listed(
    session: Session, now: int, after: str = "", limit: int | None = None, place: str | None = None
) -> list[FloatingRow]:
    """Floating licenses by id, with how many seats are taken.

    Args:
        session: of any transaction.
        now: seconds since 1970 UTC.
        after: only those behind this one.
        limit: at most so many.
        place: only those of this site.
    """
    query = select(FloatingLicense, License).join(License, License.jti == FloatingLicense.license_id)
    query = query.where(FloatingLicense.license_id > after)
    if place is not None:
        query = query.where(License.site_id == place)
    rows = session.execute(query.order_by(FloatingLicense.license_id).limit(limit)).all()
    ids = [floating.license_id for floating, _license in rows]
    mine = Seat.license_id.in_(ids), Seat.counted_until > now
    taken = {str(row[0]): int(row[1]) for row in session.execute(
        select(Seat.license_id, func.count()).where(*mine).group_by(Seat.license_id))}  # fmt: skip
    return [_floating_row(floating, license, taken.get(license.jti, 0), now) for floating, license in rows]


def one(session: Session, license_id: str, now: int) -> FloatingRow:
    """A floating license. Raises NotFound."""
    floating, license = session.get(FloatingLicense, license_id), session.get(License, license_id)
    if floating is None or license is None:
        raise NotFound(f"license {license_id!r} is not a floating one; 'license-server seats list' lists those")
    taken = select(func.count()).where(Seat.license_id == license_id, Seat.counted_until > now)
    return _floating_row(floating, license, session.scalar(taken) or 0, now)


def held(session: Session, license_id: str, now: int, after: int = 0, limit: int | None = None) -> list[SeatRow]:
    """The seats of a floating license that count, the longest held first.

    Args:
        session: of any transaction.
        license_id: the license.
        now: seconds since 1970 UTC.
        after: only those with a higher number.
        limit: at most so many.

    Raises:
        NotFound: there is no such floating license.
    """
    one(session, license_id, now)
    mine = Seat.license_id == license_id, Seat.counted_until > now, Seat.number > after
    return [_seat_row(row) for row in session.scalars(select(Seat).where(*mine).order_by(Seat.number).limit(limit))]


def _seat_row(row: Seat) -> SeatRow:
    return SeatRow(
        row.id, row.license_id, row.agent_id, row.taken_at, row.lease_until, row.grace_until, row.counted_until, row.over
    )


def _floating_row(floating: FloatingLicense, license: License, taken: int, now: int) -> FloatingRow:
    expires = license.expires_at or json.loads(license.claims)["exp"]
    return FloatingRow(
        license.jti, license.site_id, state_of(license, now).value, floating.seats, taken, max(taken - floating.seats, 0),
        floating.mode, floating.lease_s, floating.grace_s, floating.idle_s, expires,
    )  # fmt: skip


def _tell_site(session: Session, place: str | None, now: int) -> None:
    """Has the agents of a site ask for what they may have."""
    if place is None:
        return
    for agent_id in session.scalars(select(Agent.id).where(Agent.site_id == place).order_by(Agent.id)).all():
        changes.changed(session, agent_id, now, [])
