"""Who of a fleet is to renew their certificates, and who is late, by the policy that each agent goes by; on both databases."""

import pytest
from sqlalchemy import update

from contracts.contact.configuration import ResultState
from contracts.contact.renewal import DAY_S, RenewalPolicy, renewal_time
from contracts.exchange import Refused, RenewCertificate, RenewReply
from server.base.errors import NotFound
from server.fleet.configuration import renewals as module
from server.fleet.configuration.renewals import RenewalRow, renewals
from server.fleet.fleets.rotations import Rotations, rotations
from server.keys.pki import BACKDATE_S
from server.registry.models.core import Agent, Certificate
from tests.server.devices import NOW, Device, make_csr
from tests.server.licensing.states.test_changes import make_till
from tests.support.serverside import ServerSide

from .shop import Shop

ENDS = NOW + 30 * DAY_S
POLICY = {"certificates.renew_days_before": 10, "certificates.stagger_days": 10}


@pytest.fixture
def shop(server: ServerSide) -> Shop:
    made = Shop(server)
    made.fleet("north", 1, 1, 2, 3)
    return made


def found(
    shop: Shop, now: int, *, late: bool = False, fleet: str = "north", after: str = "", limit: int = 10
) -> list[RenewalRow]:
    with shop.server.database.read() as session:
        return renewals(session, fleet, after, limit, now, late=late)


def states(shop: Shop, now: int) -> list[tuple[str, str]]:
    return [(row.device_id[-1], row.state) for row in found(shop, now)]


def test_without_a_policy_agents_are_due_as_they_renew_by_themselves(shop: Shop) -> None:
    assert found(shop, NOW + 17 * DAY_S) == []
    (first, *_) = rows = found(shop, NOW + 22 * DAY_S)
    assert [row.device_id[-1] for row in rows] == ["1", "2", "3"] and first.fleet_id is None and first.ends == ENDS
    with shop.server.database.read() as session:
        number = session.query(Certificate.number).filter_by(agent_id=first.device_id).scalar()
    assert first.number == number
    own = renewal_time(RenewalPolicy(), first.device_id, int(number, 16), NOW - BACKDATE_S, ENDS)
    assert first.renews_at == own and first.state == ("due" if own <= NOW + 22 * DAY_S else "planned")
    assert states(shop, own)[0] == ("1", "due") and ("1", "due") not in states(shop, own - 1)


def test_after_the_latest_time_and_two_contacts_an_agent_is_overdue_and_then_without_access(shop: Shop) -> None:
    latest = found(shop, NOW + 22 * DAY_S)[0].latest
    assert {state for _, state in states(shop, latest + 7200)} == {"due"} and found(shop, latest + 7200, late=True) == []
    assert {state for _, state in states(shop, latest + 7201)} == {"overdue"}
    assert len(found(shop, latest + 7201, late=True)) == 3
    assert {state for _, state in states(shop, ENDS)} == {"ended"} and len(found(shop, ENDS, late=True)) == 3


def test_each_agent_is_judged_by_the_policy_that_it_was_sent_and_has_not_refused(shop: Shop) -> None:
    shop.configure("north", POLICY)
    shop.contact(number=1)
    shop.contact(ResultState.REFUSED, number=2)
    shop.till(3)  # has not asked
    at = NOW + 12 * DAY_S
    (row,) = found(shop, at)
    assert (row.device_id, row.fleet_id, row.latest) == (shop.id_of(1), "north", ENDS - 10 * DAY_S)
    assert ENDS - 20 * DAY_S <= row.renews_at <= row.latest
    shop.configure("north", {**POLICY, "certificates.renew_days_before": 1})
    shop.contact(number=1)
    assert found(shop, at) == [], "another policy counts from the contact on"


def test_who_has_renewed_or_is_out_of_service_is_not_listed(shop: Shop) -> None:
    at = NOW + 29 * DAY_S
    shop.till(1).now = at
    shop.till(1).ask(RenewCertificate, RenewReply, csr=make_csr(Device(1).tls))
    with shop.server.database.write() as session:
        session.execute(update(Agent).where(Agent.id == shop.id_of(2)).values(status="revoked"))
    assert [row.device_id for row in found(shop, at)] == [shop.id_of(3)]


def test_renewals_are_counted_of_all_agents_and_of_each_fleet_and_refused_ones_are_not(shop: Shop) -> None:
    shop.fleet("south", 2, 2)
    shop.fleet("empty", 3)
    till = shop.till(2)
    till.ask(RenewCertificate, RenewReply, csr=make_csr(Device(2).tls))
    with pytest.raises(Refused, match="certificate request"):
        till.ask(RenewCertificate, RenewReply, csr="no request")
    outside = make_till(shop.server, 4)  # in no fleet, and no device yet
    outside.ask(RenewCertificate, RenewReply, csr=make_csr(Device(4).tls))
    with shop.server.database.read() as session:
        assert rotations(session) == Rotations(2, {"north": 1, "south": 1, "empty": 0})


def test_pages_go_on_behind_an_agent_also_where_most_are_left_out(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    at = ENDS - 1
    with shop.server.database.write() as session:  # a shorter certificate: its own window is later than its end tells
        short = update(Certificate).where(Certificate.agent_id == shop.id_of(1))
        session.execute(short.values(issued_at=at - 100, not_after=at + 20_000))
    assert [row.device_id[-1] for row in found(shop, at)] == ["2", "3"]
    assert [row.device_id[-1] for row in found(shop, at, limit=1)] == ["2"]
    assert [row.device_id[-1] for row in found(shop, at, late=True, after=shop.id_of(2))] == ["3"]


def test_only_members_are_listed_and_a_fleet_must_exist(shop: Shop) -> None:
    shop.fleet("south", 2, 2)
    assert [row.device_id for row in found(shop, ENDS, fleet="south")] == [shop.id_of(2)]
    with pytest.raises(NotFound, match="there is no fleet 'nowhere'"):
        found(shop, ENDS, fleet="nowhere")
