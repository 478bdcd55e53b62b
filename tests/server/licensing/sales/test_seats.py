"""Seats of floating licenses at the server: take, renew, give back, over-use, operators' acts; on both databases."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import select

from contracts.contact.seats import LeaseReply, LeaseSeats, SeatLease
from contracts.contact.usage import MeterTotal, ReportUsage, UsageReply
from contracts.exchange import RefusalCode, Refused
from server.agents.retirement import retire
from server.base.errors import Conflict, Invalid, NotFound
from server.licensing.licenses import leases, lifecycle, usage
from server.licensing.lists.license_list import ending, listed
from server.licensing.sales import seats
from server.licensing.sales.seats import CLOCK_MARGIN_S, DAY_S, HOUR_S, FloatingRow, Mode, SeatRow, Terms
from server.registry import events
from server.registry.models.core import Agent, License
from server.registry.models.seats import Seat
from tests.server.atonce import at_once
from tests.server.devices import NOW
from tests.server.licensing.selling import Vendor
from tests.server.licensing.states.test_changes import Till, make_till
from tests.support.licensing import suspend
from tests.support.serverside import ServerSide

POOL = "pool"
LEASE, GRACE = 4 * HOUR_S, 72 * HOUR_S


@dataclass
class Shop:
    """A site with tills, and a floating license."""

    vendor: Vendor
    tills: list[Till]
    held: dict[str, str] = field(default_factory=dict)

    @property
    def server(self) -> ServerSide:
        return self.vendor.server

    def terms(self, count: int, mode: Mode = Mode.HARD, now: int = NOW, license_id: str = POOL) -> FloatingRow:
        with self.server.database.write() as session:
            return seats.set_terms(session, license_id, Terms(count, mode), now)

    def lease(
        self, till: Till, *wanted: str, held: tuple[str, ...] = (), released: tuple[str, ...] = (), now: int = NOW
    ) -> LeaseReply:
        till.now = now
        fields = {"wanted": wanted, "held": held, "released": released, "secret_version": till.version}
        found: LeaseReply = till.ask(LeaseSeats, LeaseReply, **fields)
        return found

    def take(self, till: Till, now: int = NOW) -> SeatLease | None:
        """Its seat of the pool with a new token; None if it gets none."""
        return next((seat for seat in self.lease(till, POOL, now=now).seats if seat.token is not None), None)

    def valid(self, till: Till, token: str | None, now: int) -> bool:
        return self.server.licenses.validate(till.agent.agent_id, token or "", now)[0]

    def row(self, now: int = NOW) -> FloatingRow:
        with self.server.database.read() as session:
            return seats.one(session, POOL, now)

    def rows(self, now: int = NOW) -> list[SeatRow]:
        with self.server.database.read() as session:
            return seats.held(session, POOL, now)

    def told(self, kind: str) -> list[dict[str, object]]:
        with self.server.database.read() as session:
            return [each.fields for each in events.listed(session, 0, 1000) if each.kind == kind]

    def audited(self, event: str) -> list[str]:
        return [record.outcome for record in self.server.audit.tail(1000) if record.event == event]


@pytest.fixture
def shop(server: ServerSide) -> Iterator[Shop]:
    vendor = Vendor(server, 0)
    tills = [make_till(server, number) for number in (1, 2, 3)]
    made = Shop(vendor, tills)
    with server.database.write() as session:
        for till in tills:
            seats.assign_site(session, till.agent.agent_id, "s-1", NOW)
    vendor.sell(POOL)
    made.terms(2)
    yield made


def test_two_seats_serve_two_of_three_tills_until_one_is_given_back(shop: Shop) -> None:
    one, two, three = shop.tills
    first, second = shop.take(one), shop.take(two)
    assert first is not None and second is not None and first.seat != second.seat
    assert (first.lease_until, first.grace_until) == (NOW + LEASE, NOW + LEASE + GRACE)
    assert shop.valid(one, first.token, NOW) and not shop.valid(two, first.token, NOW)
    refused = shop.lease(three, POOL)
    assert (refused.refused, refused.seats) == ((POOL,), ()) and [each.license for each in refused.floating] == [POOL]
    back = shop.lease(one, released=(first.seat,), now=NOW + 1)
    assert back.seats == () and not shop.valid(one, first.token, NOW + 1)
    assert shop.take(three, NOW + 2) is not None
    assert shop.audited("seat.taken") == ["ok"] * 3 and shop.audited("seat.refused") == ["no_seat"]
    assert shop.audited("seat.released") == ["ok"] and len(shop.told("seat.taken")) == 3


def test_a_till_that_takes_and_gives_back_without_end_is_refused_after_a_day_s_worth(shop: Shop) -> None:
    one, two = shop.tills[:2]
    for second in range(leases.MAX_TAKEN_A_DAY):
        taken = shop.take(one, NOW + second)
        assert taken is not None
        shop.lease(one, released=(taken.seat,), now=NOW + second)
    for second in range(30):
        assert shop.lease(one, POOL, now=NOW + 60 + second).refused == (POOL,)
    assert 0 < len(shop.audited("seat.refused")) <= leases.TOLD_RATE.burst
    assert shop.take(two, NOW + 60) is not None
    assert shop.take(one, NOW + DAY_S + 60) is not None


def test_a_till_that_makes_up_seats_fills_neither_audit_nor_feed(shop: Shop) -> None:
    one, two, three = shop.tills
    assert shop.take(one) and shop.take(two)
    for second in range(30):
        shop.lease(three, held=(f"{POOL}#{second}",), now=NOW + second)
        assert shop.take(three, NOW + second) is None
    assert 0 < len(shop.told("seat.over_use")) <= leases.TOLD_RATE.burst
    assert 0 < len(shop.audited("seat.refused")) <= leases.TOLD_RATE.burst


def test_a_license_whose_id_looks_like_a_seat_s_is_neither_issued_nor_shadowed(shop: Shop) -> None:
    vendor = shop.vendor
    with pytest.raises(Conflict, match=r"would look like a seat of the floating license 'pool'"):
        vendor.sell(f"{POOL}#{NOW}")
    vendor.sell("order#77")
    vendor.sell("order")
    with pytest.raises(Conflict, match=r"there is a license 'order#77', whose id looks like that of a seat"):
        shop.terms(1, license_id="order")


def test_a_floating_license_that_is_issued_again_stays_at_its_site(shop: Shop) -> None:
    with pytest.raises(Conflict, match="is a floating one of site 's-1', and stays there"):
        shop.vendor.sell(POOL, site=None, customer="c-1")
    shop.vendor.sell(POOL, now=NOW + 1)
    assert shop.take(shop.tills[0], NOW + 1) is not None


def test_asking_again_renews_the_same_seat_and_takes_no_other(shop: Shop) -> None:
    one = shop.tills[0]
    first, again = shop.take(one), shop.take(one, NOW + LEASE)
    assert first is not None and again is not None and first.seat == again.seat
    assert again.grace_until == NOW + 2 * LEASE + GRACE and shop.row(NOW + LEASE).taken == 1
    assert shop.valid(one, again.token, NOW + LEASE + GRACE) and not shop.valid(one, first.token, NOW + LEASE + GRACE)
    assert shop.audited("seat.taken") == ["ok"]


def test_a_seat_of_a_silent_till_counts_until_its_token_has_ended_by_a_slow_clock_too(shop: Shop) -> None:
    one, two, three = shop.tills
    first = shop.take(one)
    assert first is not None and shop.take(two, NOW + LEASE) is not None
    end = first.grace_until
    assert shop.take(three, end) is None and shop.take(three, end + CLOCK_MARGIN_S - 1) is None
    assert not shop.valid(one, first.token, end)
    assert shop.take(three, end + CLOCK_MARGIN_S) is not None


def test_a_soft_license_gives_one_more_and_tells_it_once(shop: Shop) -> None:
    shop.terms(2, Mode.SOFT)
    taken = [shop.take(till) for till in shop.tills]
    assert all(taken) and (shop.row().taken, shop.row().over) == (3, 1)
    assert [row.over for row in shop.rows()] == [False, False, True]
    assert shop.audited("seat.over_use") == ["soft"]
    last = shop.tills[2]
    assert shop.take(last, NOW + LEASE) is not None
    assert shop.audited("seat.over_use") == ["soft"] and len(shop.told("seat.over_use")) == 1
    with shop.server.database.read() as session:
        (jti,) = [row.seat for row in shop.rows() if row.over]
        claims = json.loads(session.get_one(License, jti).claims)
    assert claims["metadata"] == {"tier": "1", leases.OVER_USE: "yes"} and claims["features"] == ["sales", "fuel"]
    # A seat is free: the one beyond the number becomes an ordinary one.
    shop.lease(shop.tills[0], released=(taken[0].seat if taken[0] else "",), now=NOW + LEASE)
    assert shop.take(last, NOW + LEASE + 1) is not None and shop.row(NOW + LEASE + 1).over == 0


def test_fewer_seats_end_the_newest_with_its_grace(shop: Shop) -> None:
    one, two, _three = shop.tills
    first, second = shop.take(one), shop.take(two, NOW + 1)
    assert first is not None and second is not None
    shop.terms(1)
    later = shop.lease(two, POOL, held=(second.seat,), now=NOW + LEASE)
    assert later.refused == (POOL,) and later.ended == () and later.seats[0].token is None
    assert shop.valid(two, second.token, second.grace_until - 1)
    assert shop.take(one, NOW + LEASE) is not None


@pytest.mark.parametrize("count", [1, 2])
def test_tills_that_ask_at_once_never_get_more_than_there_are(shop: Shop, count: int) -> None:
    shop.terms(count)
    taken = at_once([lambda till=till: shop.take(till) for till in shop.tills])  # type: ignore[misc]
    assert sum(seat is not None for seat in taken) == count == shop.row().taken


def test_a_seat_is_suspended_reinstated_and_revoked_with_its_license(shop: Shop) -> None:
    one, two, _three = shop.tills
    seat = shop.take(one)
    one.sync()
    assert seat is not None and one.standing == {seat.seat: "active"}
    suspend(shop.server, POOL, NOW + 1)
    one.sync()
    assert one.standing == {seat.seat: "suspended"} and not shop.valid(one, seat.token, NOW + 1)
    kept = shop.lease(one, POOL, held=(seat.seat,), now=NOW + 2)
    assert (kept.refused, kept.ended, kept.floating) == ((POOL,), (), ()) and shop.take(two, NOW + 2) is None
    suspend(shop.server, POOL, NOW + 3, on=False)
    one.sync()
    assert one.standing == {seat.seat: "active"} and shop.valid(one, seat.token, NOW + 3)
    shop.server.licenses.revoke(POOL, NOW + 4)
    assert not shop.valid(one, seat.token, NOW + 4) and shop.take(two, NOW + 5) is None
    number, _next, revoked = shop.server.licenses.revocations(one.agent.agent_id, NOW + 5)
    assert revoked == (seat.seat,) and number


def test_a_seat_ends_with_its_license(shop: Shop) -> None:
    shop.vendor.sell("short", expires=NOW + HOUR_S)
    shop.terms(2, license_id="short")
    one, two, _three = shop.tills
    (seat,) = shop.lease(one, "short").seats
    assert seat.grace_until == NOW + HOUR_S and shop.valid(one, seat.token, NOW + HOUR_S - 1)
    assert shop.lease(two, "short", now=NOW + HOUR_S).refused == ("short",)


def test_an_agent_of_another_site_gets_nothing_and_gives_back_what_it_had(shop: Shop) -> None:
    one = shop.tills[0]
    seat = shop.take(one)
    assert seat is not None
    with shop.server.database.write() as session:
        seats.assign_site(session, one.agent.agent_id, None, NOW)
    told = shop.lease(one, POOL, held=(seat.seat,), now=NOW + 1)
    assert (told.refused, told.ended, told.floating) == ((POOL,), (seat.seat,), ())
    assert shop.row().taken == 1
    shop.lease(one, released=(seat.seat,), now=NOW + 2)
    assert shop.row().taken == 0


def test_one_till_cannot_give_back_the_seat_of_another(shop: Shop) -> None:
    one, two, _three = shop.tills
    seat = shop.take(one)
    assert seat is not None
    shop.lease(two, released=(seat.seat,))
    assert shop.row().taken == 1 and shop.valid(one, seat.token, NOW)


def test_a_retired_agents_seat_counts_until_its_token_has_ended(shop: Shop) -> None:
    one, two, three = shop.tills
    seat = shop.take(one)
    assert seat is not None and shop.take(two) is not None
    with shop.server.database.write() as session:
        retire(session, one.agent.agent_id, NOW)
    assert shop.take(three, NOW + 1) is None
    # An operator who knows that the machine is gone need not wait.
    with shop.server.database.write() as session:
        seats.free(session, seat.seat, NOW + 2)
    assert shop.take(three, NOW + 2) is not None and shop.audited("seat.freed") == ["ok"]
    with pytest.raises(NotFound), shop.server.database.write() as session:
        seats.free(session, seat.seat, NOW + 3)


def test_a_replaced_machine_leaves_its_seat_behind_and_its_site_to_the_new_one(shop: Shop) -> None:
    one = shop.tills[0]
    new = make_till(shop.server, 4)
    seat = shop.take(one)
    with shop.server.database.write() as session:
        old_row, new_row = (session.get_one(Agent, till.agent.agent_id) for till in (one, new))
        assert lifecycle.move_all(session, old_row, new_row, NOW) == []
        retire(session, old_row.id, NOW, new_row.id)
    assert seat is not None and shop.take(new, NOW + 1) is not None and shop.row().taken == 2


def test_two_machines_with_one_identity_have_one_seat_and_none_gives_it_up_for_the_other(shop: Shop) -> None:
    one = shop.tills[0]
    seat, copy = shop.take(one), shop.take(one, NOW + 1)
    assert seat is not None and copy is not None and seat.seat == copy.seat and shop.row().taken == 1
    with shop.server.database.write() as session:
        session.get_one(Agent, one.agent.agent_id).halted_at = NOW + 2
    shop.lease(one, released=(seat.seat,), now=NOW + 3)
    assert shop.row().taken == 1 and shop.valid(one, copy.token, NOW + 3)


def test_a_restored_registry_takes_seats_that_it_does_not_know_and_tells_what_is_too_many(shop: Shop) -> None:
    one, two, three = shop.tills
    known = [shop.take(one), shop.take(two)]
    with shop.server.database.write() as session:
        for seat in session.scalars(select(Seat)).all():
            seats.drop(session, seat)
    assert known[0] is not None and known[1] is not None
    assert shop.take(three, NOW + 1) is not None
    told = shop.lease(one, held=(known[0].seat,), now=NOW + 2)
    assert told.ended == (known[0].seat,) and [seat.token is None for seat in told.seats] == [False]
    assert told.seats[0].seat != known[0].seat
    late = shop.lease(two, held=(known[1].seat,), now=NOW + 3)
    assert late.seats == () and late.ended == (known[1].seat,)
    assert shop.audited("seat.over_use") == ["unknown_seat"] and shop.row(NOW + 3).taken == 2


def test_a_seat_is_no_license_that_is_changed_sold_or_reported_by_itself(shop: Shop) -> None:
    seat = shop.take(shop.tills[0])
    assert seat is not None
    for act in ("suspend", "release", "renew"):
        with pytest.raises(Conflict, match="is a seat"):
            shop.vendor.do(act, seat.seat)
    for jti in (seat.seat, POOL):
        with pytest.raises(Conflict, match=r"is a seat|is a floating one"):
            shop.vendor.do("transfer" if jti != POOL else "assign", jti, shop.tills[1].agent.agent_id)
    with pytest.raises(Conflict, match="is a seat"):
        shop.vendor.sell(seat.seat, shop.tills[0].agent.agent_id)
    with pytest.raises(Conflict, match="is a seat"):
        shop.server.licenses.revoke(seat.seat, NOW)
    with shop.server.database.read() as session:
        assert ending(session, NOW, NOW, NOW + GRACE + LEASE + 1) == []
        assert [row.license_id for row in listed(session, NOW, seats=False)] == [POOL]
        assert [row.license_id for row in listed(session, NOW)] == [POOL, seat.seat]


def test_what_cannot_float_is_refused(shop: Shop) -> None:
    agent = shop.tills[0].agent.agent_id
    shop.vendor.sell("on-a-till", agent)
    shop.vendor.sell("nowhere", site=None)
    shop.vendor.sell("x" * 120)
    for license_id, error in (("on-a-till", Conflict), ("nowhere", Conflict), ("x" * 120, Invalid), ("none", NotFound)):
        with pytest.raises(error):
            shop.terms(1, license_id=license_id)
    for terms in (Terms(0), Terms(1, lease=1), Terms(1, grace=10**9), Terms(1, idle=60)):
        with pytest.raises(Invalid), shop.server.database.write() as session:
            seats.set_terms(session, POOL, terms, NOW)
    for number in range(15):
        shop.vendor.sell(f"more-{number}")
        shop.terms(1, license_id=f"more-{number}")
    shop.vendor.sell("too-many")
    with pytest.raises(Conflict, match="16 floating licenses"):
        shop.terms(1, license_id="too-many")


def test_tills_of_the_site_ask_again_after_a_change_of_terms(shop: Shop) -> None:
    one = shop.tills[0]
    one.sync()
    assert one.status(license_number=one.number).license_number == one.number
    shop.terms(3, now=NOW + 5)
    assert one.status(license_number=one.number).license_number != one.number


def test_an_unknown_secret_version_is_refused(shop: Shop) -> None:
    one = shop.tills[0]
    with pytest.raises(Refused) as refused:
        one.ask(LeaseSeats, LeaseReply, wanted=(), held=(), released=(), secret_version=99)
    assert refused.value.refusal.code is RefusalCode.UNKNOWN_VERSION


def test_what_is_used_with_seats_is_usage_of_the_floating_license_also_when_the_seat_has_gone(shop: Shop) -> None:
    till, other = shop.tills[0], shop.tills[1]

    def report(till: Till, seat: str, amount: int, epoch: int) -> UsageReply:
        total = MeterTotal(license=seat, meter="scans", epoch=f"{epoch:032x}", total=amount)
        reply: UsageReply = till.ask(ReportUsage, UsageReply, totals=(total,))
        return reply

    first = shop.take(till)
    assert first is not None
    assert report(till, first.seat, 2, 1).refused == ()
    shop.lease(till, released=(first.seat,))
    second = shop.take(till)
    assert second is not None and second.seat != first.seat
    # It counted once more with each, gave the second one back, and reports only now.
    shop.lease(till, released=(second.seat,))
    assert report(till, first.seat, 3, 1).refused == ()
    assert report(till, second.seat, 5, 2).refused == ()
    assert report(other, second.seat, 7, 3).refused != (), "it never had that seat"
    third = shop.take(other)
    assert third is not None
    ended = third.grace_until + DAY_S + 301
    with shop.server.database.write() as session:
        assert seats.remove_ended(session, ended) == 1
    other.now = ended
    assert report(other, third.seat, 11, 4).refused == ()
    with shop.server.database.read() as session:
        rows = usage.listed(session, usage.Which(license_id=POOL), None, 9)
        assert sum(row.amount for row in rows) == 3 + 5 + 11
        assert {row.license_id for row in usage.listed(session, usage.Which(), None, 9)} == {POOL}


def test_ended_seats_are_deleted_a_day_later(shop: Shop) -> None:
    seat = shop.take(shop.tills[0])
    assert seat is not None
    end = seat.grace_until + CLOCK_MARGIN_S
    with shop.server.database.write() as session:
        assert seats.remove_ended(session, end + 86_399) == 0
    with shop.server.database.write() as session:
        assert seats.remove_ended(session, end + 86_400) == 1
    with shop.server.database.read() as session:
        assert session.get(License, seat.seat) is None and session.get(Seat, seat.seat) is None
