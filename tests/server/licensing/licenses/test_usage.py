"""What agents report is counted once, whatever order, repetition and loss their reports meet; on both databases."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from contracts.contact.usage import MeterTotal, ReportUsage, UsageReply
from contracts.exchange import RefusalCode, Refused
from server.accounts.roles import Role
from server.base.errors import Invalid
from server.licensing.licenses import usage
from server.licensing.licenses.usage import MAX_EPOCHS, Sum, Which
from server.registry.models.usage import UsageCounter, UsageDay
from server.registry.upkeep.housekeeping import Housekeeping
from server.registry.upkeep.retention import DAY_S
from tests.server.acts.operators import Desk, account
from tests.server.devices import NOW
from tests.server.licensing.states.test_changes import Till, issue, make_till
from tests.support.licensing import transfer
from tests.support.serverside import ServerSide

EPOCH = "0" * 32
TODAY = NOW // DAY_S


@pytest.fixture
def till(server: ServerSide) -> Iterator[Till]:
    made = make_till(server, 1)
    issue(made, "one")
    yield made


def total(amount: int, epoch: int = 0, license_id: str = "one", meter: str = "sales") -> MeterTotal:
    return MeterTotal(license=license_id, meter=meter, epoch=f"{epoch:032x}", total=amount)


def say(till: Till, *totals: MeterTotal) -> UsageReply:
    reply: UsageReply = till.ask(ReportUsage, UsageReply, totals=totals)
    return reply


def used(till: Till, **which: Any) -> dict[tuple[int, str, str, str], int]:
    with till.server.database.read() as session:
        rows = usage.listed(session, Which(**which), None, 500)
    return {(row.day - TODAY, row.license_id, row.meter, row.agent_id): row.amount for row in rows}


def alerts(till: Till) -> list[dict[str, Any]]:
    return [each.fields for each in till.server.audit.tail(50) if each.event == "alert.usage_went_back"]


def test_what_a_total_has_grown_by_is_of_the_day_on_which_it_comes(till: Till) -> None:
    agent, one = till.agent.agent_id, "one"
    reply = say(till, total(5), total(2, 1, meter="washes"))
    assert (reply.behind, reply.refused) == ((), ())
    till.now += DAY_S
    assert say(till, total(9)).behind == ()
    assert used(till) == {(0, one, "sales", agent): 5, (0, one, "washes", agent): 2, (1, one, "sales", agent): 4}
    with till.server.database.read() as session:
        assert usage.sums(session, Which(), None, 9) == [
            Sum(one, "sales", 9, TODAY, TODAY + 1), Sum(one, "washes", 2, TODAY, TODAY)
        ]  # fmt: skip
        since = {row.day - TODAY: row.since for row in usage.listed(session, Which(meter="sales"), None, 9)}
    assert since == {0: None, 1: till.now - DAY_S}


def test_a_report_that_comes_again_counts_nothing(till: Till) -> None:
    for _ in range(3):
        say(till, total(5))
    request = till.agent.request(ReportUsage, str(till.exchange.admit(till.peer, till.now)), totals=(total(8),))
    text = till.agent.sign(request)
    first = till.exchange.handle("report-usage", till.peer, text, till.now)
    assert till.exchange.handle("report-usage", till.peer, text, till.now) == first
    assert sum(used(till).values()) == 8 and alerts(till) == []


def test_a_report_that_was_delayed_is_no_alert(till: Till) -> None:
    old = till.agent.request(ReportUsage, str(till.exchange.admit(till.peer, till.now)), totals=(total(5),))
    till.now += 10
    say(till, total(8))
    answer = till.exchange.handle("report-usage", till.peer, till.agent.sign(old), till.now)
    reply = till.agent.verify(answer.body(), UsageReply, old.request_id)
    assert (reply.behind, reply.refused) == ((), ()) and sum(used(till).values()) == 8 and alerts(till) == []


def test_a_lower_total_is_an_alert_once_a_day_and_lowers_nothing(till: Till) -> None:
    say(till, total(8))
    for _ in range(3):
        till.now += 10
        assert say(till, total(5)).behind == (EPOCH,)
    assert sum(used(till).values()) == 8
    (alert,) = alerts(till)
    assert alert == {"license": "one", "meter": "sales", "epoch": EPOCH, "total": 5, "before": 8}
    till.now += DAY_S
    say(till, total(5))
    assert len(alerts(till)) == 2
    assert say(till, total(6, 1)).behind == () and sum(used(till).values()) == 14


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), min_size=1, max_size=12).flatmap(
        lambda reports: st.tuples(st.just(reports), st.permutations(reports * 2), st.integers(0, len(reports) * 2))
    )
)
def test_any_order_repetition_and_loss_gives_the_greatest_total_of_each_epoch(till: Till, reports: Any) -> None:
    _made, sent, lost = reports
    with till.server.database.write() as session:
        session.execute(delete(UsageCounter))
        session.execute(delete(UsageDay))
        wanted: dict[int, int] = {}
        for place, (epoch, amount) in enumerate(sent[lost:]):
            usage.take(session, till.agent.agent_id, [total(amount, epoch)], NOW + place, NOW + place * 40_000)
            wanted[epoch] = max(amount, wanted.get(epoch, 0))
        assert sum(row.amount for row in usage.sums(session, Which(), None, 9)) == sum(wanted.values())
        assert {int(row.epoch, 16): row.total for row in session.scalars(select(UsageCounter))} == wanted


def test_a_license_that_was_never_the_agents_is_refused(till: Till, server: ServerSide) -> None:
    other = make_till(server, 2)
    issue(other, "two")
    assert say(till, total(5, license_id="two"), total(3, 1)).refused == (EPOCH,)
    assert say(till, total(5, license_id="nobody's")).refused == (EPOCH,)
    assert list(used(till).values()) == [3]
    say(other, total(7, license_id="two"))
    # An epoch counts for one license and one meter.
    assert say(till, total(9, 1, meter="washes")).refused == (f"{1:032x}",)


def test_a_license_that_has_moved_is_counted_for_both_machines(till: Till, server: ServerSide) -> None:
    other = make_till(server, 2)
    transfer(server, "one", other.agent.agent_id, NOW)
    assert say(till, total(5)).refused == () and say(other, total(7, 1)).refused == ()
    assert used(till) == {(0, "one", "sales", till.agent.agent_id): 5, (0, "one", "sales", other.agent.agent_id): 7}
    with server.database.read() as session:
        assert [row.amount for row in usage.sums(session, Which(), None, 9)] == [12]


def test_epochs_of_an_agent_are_bounded(till: Till) -> None:
    for first in range(0, MAX_EPOCHS, 64):
        assert say(till, *(total(1, first + each) for each in range(64))).refused == ()
    assert say(till, total(1, MAX_EPOCHS), total(4, 0)).refused == (f"{MAX_EPOCHS:032x}",)
    assert sum(used(till).values()) == MAX_EPOCHS + 3


def test_totals_do_not_overflow(till: Till) -> None:
    most = 2**53 - 1
    say(till, total(most), total(most, 1), total(most, 2))
    assert list(used(till).values()) == [most]
    till.now += DAY_S
    say(till, total(most, 3))
    with till.server.database.read() as session:
        assert [row.amount for row in usage.sums(session, Which(), None, 9)] == [most]


@pytest.mark.parametrize("change", [{"totals": ()}, {"totals": [total(1, each) for each in range(65)]}], ids=["none", "65"])
def test_another_form_is_refused(till: Till, change: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        till.ask(ReportUsage, UsageReply, **change)
    assert caught.value.refusal.code is RefusalCode.BAD_REQUEST


def test_usage_goes_after_its_time_and_outlives_its_agent(till: Till, server: ServerSide) -> None:
    say(till, total(5))
    till.now += 500 * DAY_S
    with server.database.write() as session:
        usage.take(session, till.agent.agent_id, [total(9)], till.now, till.now)
    keeper = Housekeeping(server.database, server.cipher.audit_key())
    keeper.run(NOW + 1096 * DAY_S - 1, confirmed=True)
    assert len(used(till)) == 2
    assert keeper.run(NOW + 1098 * DAY_S, confirmed=True).rows["usage_day"] == 1
    assert list(used(till).values()) == [4]
    removed = keeper.run(till.now + 1098 * DAY_S, confirmed=True).rows
    assert removed["usage_day"] == removed["usage_counter"] == 1


def test_the_acts_list_pages_by_license_meter_and_customer(till: Till, server: ServerSide) -> None:
    issue(till, "a/b c")
    for number, license_id in enumerate(("one", "a/b c")):
        say(till, total(5 + number, number, license_id), total(1, number + 8, license_id, "washes"))
    till.now += DAY_S
    say(till, total(50))
    desk = Desk(server)
    viewer = account(server, "erna", Role.VIEWER)

    def all_of(act: str, **body: Any) -> list[Any]:
        found, after = [], ""
        while after is not None:
            page = desk.do(act, viewer, limit=2, after=after, **body)
            found += page.items
            after = page.after
        return found

    rows = all_of("reports.usage")
    assert [(row.day - TODAY, row.license_id, row.meter, row.amount) for row in rows] == [
        (0, "a/b c", "sales", 6), (0, "a/b c", "washes", 1), (0, "one", "sales", 5), (0, "one", "washes", 1),
        (1, "one", "sales", 45),
    ]  # fmt: skip
    assert [row.amount for row in all_of("reports.usage", begin=TODAY + 1)] == [45]
    assert [row.amount for row in all_of("reports.usage", end=TODAY + 1, license_id="one")] == [5, 1]
    assert all_of("reports.usage", customer="nobody") == [] == all_of("reports.usage", agent_id="pos-9")
    sums = [(row.license_id, row.meter, row.amount) for row in all_of("reports.usage_sums")]
    assert sums == [("a/b c", "sales", 6), ("a/b c", "washes", 1), ("one", "sales", 50), ("one", "washes", 1)]
    for act, after in (("reports.usage", "x"), ("reports.usage", "x/a/b/c"), ("reports.usage_sums", "x")):
        with pytest.raises(Invalid):
            desk.do(act, viewer, after=after)
