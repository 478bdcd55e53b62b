"""Gives agents seats of the floating licenses of their site, renews them and takes them back (`contracts.contact.seats`).

A seat is renewed or taken only if no more than the number of seats count, so a lost reply, a killed agent or a server that was
away never makes one more: what an agent was given counts until that has ended. The server remembers no request: an agent that
asks again gets the seat that it has. An agent that lies about its seats fills neither the registry nor the audit and the feed.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.claims import MAX_METADATA, Claims, check_claims
from contracts.contact.seats import MAX_FLOATING, MAX_SEATS, SEAT_MARK, FloatingLicense, LeaseSeats, SeatLease
from contracts.exchange import RefusalCode
from server.agents.registry import ACTIVE
from server.base.limits import Rate, buckets
from server.base.refused import RequestRefused
from server.licensing.sales import seats
from server.licensing.sales.orders import checked_claims
from server.licensing.sales.seats import CLOCK_MARGIN_S, DAY_S, Mode
from server.licensing.secrets.secrets import Secrets
from server.licensing.states.license_states import State, state_of
from server.registry import audit, events
from server.registry.models import seats as tables
from server.registry.models.core import Agent, License

from .licenses import Licenses

OVER_USE = "seat_over_use"
"""Metadata of a seat beyond the number of seats, if the license has room for it: a POS application may show it."""


MAX_TAKEN_A_DAY = 24
"""Seats of one license that an agent gets in 24 hours: it gives one back that was not used for an hour at least."""
TOLD_RATE = Rate(1 / 300, 6)
"""How often refusals of one agent are recorded, for each license: an agent asks again after 300 s at the earliest."""


@dataclass(frozen=True, slots=True)
class Leased:
    """What an agent has then, as in `contracts.contact.seats.LeaseReply`."""

    floating: tuple[FloatingLicense, ...] = ()
    seats: tuple[SeatLease, ...] = ()
    refused: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()


@dataclass(slots=True)
class _Visit:
    """One request, in its transaction.

    Attributes:
        agent: who asks, locked.
        offered: the floating licenses of its site that may be used now, by id.
        here: all floating licenses of its site, by id.
        mine: its seats that count, by their floating license.
        tokens: new ones, by seat.
        said: events for the audit and the feed, written when nothing else has to be locked.
    """

    session: Session
    agent: Agent
    version: int
    now: int
    offered: dict[str, tuple[tables.FloatingLicense, License]] = field(default_factory=dict)
    here: set[str] = field(default_factory=set)
    mine: dict[str, tables.Seat] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    said: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)


class Leases:
    """Gives seats. Every method works in the transaction of the session that it is given.

    Args:
        licenses: makes tokens.
        secrets: tokens are encrypted with them.
        steady: seconds of a clock that never goes back.
    """

    def __init__(self, licenses: Licenses, secrets: Secrets, steady: Callable[[], float] = time.monotonic) -> None:
        self._licenses = licenses
        self._secrets = secrets
        self._steady = steady
        self._told = buckets(TOLD_RATE)

    def lease(self, session: Session, agent_id: str, asked: LeaseSeats, now: int) -> Leased:
        """Takes, renews and takes back seats of an agent.

        Args:
            session: of a writing transaction that has locked the agent.
            agent_id: the agent.
            asked: its request.
            now: seconds since 1970 UTC.

        Raises:
            RequestRefused: the server does not know the secret version that the agent holds.
        """
        agent = session.get_one(Agent, agent_id)
        if self._secrets.open(session, agent_id, asked.secret_version) is None:
            raise RequestRefused(
                RefusalCode.UNKNOWN_VERSION,
                f"the server has no secret version {asked.secret_version} that licenses can be issued under",
            )
        if agent.status != ACTIVE:
            # It gets nothing, and gives nothing back; what it has counts until it ends.
            return Leased()
        visit = _Visit(session, agent, asked.secret_version, now)
        _open(visit)
        _take_back(visit, asked.released)
        lost = _lost(visit, asked.held)
        refused = [each for each in sorted({*asked.wanted, *lost}) if not self._serve(visit, each)]
        for license_id in lost:
            if license_id in refused and self._is_news(agent_id, license_id, "unknown_seat"):
                visit.said.append(("seat.over_use", "unknown_seat", {"license": license_id, "agent": agent_id}))
        # A seat of a suspended license is kept: the suspension may end.
        kept = {seat.id for license_id, seat in visit.mine.items() if license_id in visit.here}
        ended = tuple(each for each in asked.held if each not in kept)
        _record(visit)
        wanted = tuple(each for each in asked.wanted if each in refused)
        return Leased(tuple(_offers(visit)), tuple(_told(visit)[:MAX_SEATS]), wanted, ended)

    def _serve(self, visit: _Visit, license_id: str) -> bool:
        """Renews the agent's seat of a license, or takes one; False if it cannot have one, or no longer."""
        if license_id not in visit.offered:
            return False
        floating, license = visit.offered[license_id]
        counted = seats.counted(visit.session, license_id, visit.now)
        seat = visit.mine.get(license_id)
        place = len(counted) if seat is None else [each.id for each in counted].index(seat.id)
        over = place >= floating.seats
        if over and floating.mode != Mode.SOFT:
            self._refuse(visit, license_id, "no_seat")
            return False
        if seat is None and seats.taken_since(visit.session, visit.agent.id, license_id, visit.now - DAY_S) >= MAX_TAKEN_A_DAY:
            self._refuse(visit, license_id, "too_often")
            return False
        if seat is None:
            seat = _new_seat(visit, floating, license, over)
        elif over and not seat.over:
            visit.said.append(("seat.over_use", "fewer_seats", _ids(seat)))
        self._lease(visit, floating, license, seat, over)
        return True

    def _refuse(self, visit: _Visit, license_id: str, why: str) -> None:
        if self._is_news(visit.agent.id, license_id, why):
            visit.said.append(("seat.refused", why, {"license": license_id, "agent": visit.agent.id}))

    def _is_news(self, agent_id: str, license_id: str, what: str) -> bool:
        return self._told.take((agent_id, license_id, what), self._steady())

    def _lease(self, visit: _Visit, floating: tables.FloatingLicense, license: License, seat: tables.Seat, over: bool) -> None:
        now, session = visit.now, visit.session
        terms = check_claims({**json.loads(license.claims), "aud": visit.agent.id})
        seat.over, seat.lease_until = over, now + floating.lease_s
        # Never earlier than before: the agent goes by the end of its newest token when it gives the seat back.
        seat.grace_until = min(max(seat.grace_until, now + floating.lease_s + floating.grace_s), terms.exp)
        seat.counted_until = max(seat.counted_until, seat.grace_until + CLOCK_MARGIN_S)
        row = session.get(License, seat.id, with_for_update=True, populate_existing=True)
        if row is None:
            row = License(jti=seat.id, agent_id=visit.agent.id, seat_of=license.jti, created_at=now)
        claims = _claims_of(terms, seat, over)
        row.claims, row.subject, row.expires_at, row.updated_at = json.dumps(claims), terms.sub, seat.grace_until, now
        row.policy_id, row.product_id = license.policy_id, license.product_id
        row.customer_id, row.site_id = license.customer_id, license.site_id
        row.suspended_at = None
        session.add(row)
        session.flush()
        visit.tokens[seat.id] = self._licenses.renewed_token(session, row, visit.version, now)


def _claims_of(terms: Claims, seat: tables.Seat, over: bool) -> dict[str, Any]:
    metadata = dict(terms.metadata or {})
    if over and len(metadata) < MAX_METADATA:
        metadata[OVER_USE] = "yes"
    return checked_claims(replace(terms, jti=seat.id, exp=seat.grace_until, metadata=metadata).as_json())


def _new_seat(visit: _Visit, floating: tables.FloatingLicense, license: License, over: bool) -> tables.Seat:
    # With the time in it, no number comes twice even if a restored backup has lost some.
    floating.last_number = max(floating.last_number + 1, visit.now)
    seat = tables.Seat(
        id=f"{license.jti}{SEAT_MARK}{floating.last_number}", license_id=license.jti, number=floating.last_number,
        agent_id=visit.agent.id, taken_at=visit.now, lease_until=visit.now, grace_until=visit.now, counted_until=visit.now,
        over=over,
    )  # fmt: skip
    visit.session.add(seat)
    visit.mine[license.jti] = seat
    visit.said.append(("seat.taken", "ok", _ids(seat)))
    if over:
        visit.said.append(("seat.over_use", "soft", _ids(seat)))
    return seat


def _open(visit: _Visit) -> None:
    """Locks the floating licenses that the request can be about, and reads the agent's seats."""
    session, agent, now = visit.session, visit.agent, visit.now
    mine = select(tables.Seat.license_id).where(tables.Seat.agent_id == agent.id, tables.Seat.counted_until > now)
    here = select(tables.FloatingLicense.license_id).join(License, License.jti == tables.FloatingLicense.license_id)
    ids = {*session.scalars(mine)}
    if agent.site_id is not None:
        ids |= {*session.scalars(here.where(License.site_id == agent.site_id).limit(MAX_FLOATING))}
    locked = select(License).where(License.jti.in_(ids)).order_by(License.jti).with_for_update()
    rows = list(session.scalars(locked.execution_options(populate_existing=True))) if ids else []
    for row in rows:
        floating = session.get(tables.FloatingLicense, row.jti, populate_existing=True)
        if floating is None or agent.site_id is None or row.site_id != agent.site_id:
            continue
        visit.here.add(row.jti)
        if state_of(row, now) is State.ACTIVE and json.loads(row.claims)["nbf"] <= now:
            visit.offered[row.jti] = floating, row
    held = select(tables.Seat).where(tables.Seat.agent_id == agent.id, tables.Seat.counted_until > now)
    for seat in session.scalars(held.order_by(tables.Seat.number).execution_options(populate_existing=True)):
        visit.mine[seat.license_id] = seat


def _take_back(visit: _Visit, released: tuple[str, ...]) -> None:
    # Of two machines with one identity, the one that gives a seat back does not stop the other from using it.
    if visit.agent.halted_at is not None:
        return
    for license_id, seat in list(visit.mine.items()):
        if seat.id in released:
            visit.said.append(("seat.released", "ok", _ids(seat)))
            seats.drop(visit.session, seat)
            del visit.mine[license_id]


def _lost(visit: _Visit, held: tuple[str, ...]) -> list[str]:
    """Floating licenses of which the agent holds a seat that this registry does not know: it was restored from a backup."""
    known = {seat.id for seat in visit.mine.values()}
    named = {each.rpartition(SEAT_MARK)[0] for each in held if each not in known}
    return sorted(each for each in named if each in visit.offered and each not in visit.mine)


def _ids(seat: tables.Seat) -> dict[str, Any]:
    return {"seat": seat.id, "license": seat.license_id, "agent": seat.agent_id}


def _record(visit: _Visit) -> None:
    """Writes the audit and the feed. A refusal is in the audit alone: a till asks again and again."""
    for event, outcome, ids in visit.said:
        audit.record(visit.session, f"agent {visit.agent.id}", event, outcome, visit.now, **ids)
        if event != "seat.refused":
            events.emit(visit.session, event, visit.now, **{"seat": ids["license"], **ids})


def _offers(visit: _Visit) -> list[FloatingLicense]:
    found = []
    for license_id, (floating, row) in sorted(visit.offered.items()):
        claims = json.loads(row.claims)
        product = claims["metadata"].get("product") or None
        found.append(
            FloatingLicense(
                license=license_id,
                product=product,
                features=tuple(claims["features"]),
                expires=claims["exp"],
                idle_s=floating.idle_s,
            )
        )
    return found


def _told(visit: _Visit) -> list[SeatLease]:
    return [
        SeatLease(
            license=license_id,
            seat=seat.id,
            lease_until=seat.lease_until,
            grace_until=seat.grace_until,
            token=visit.tokens.get(seat.id),
        )
        for license_id, seat in sorted(visit.mine.items())
    ]
