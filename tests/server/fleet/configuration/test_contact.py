"""What agents are given of their fleets' configurations, and what is noted of their answers; on both databases."""

import pytest
from sqlalchemy import delete

from contracts.contact.capabilities import AnnounceCapabilities, AnnounceReply
from contracts.contact.configuration import CONFIGURATION, Configuration, Members, ResultState, values_of
from server.fleet.configuration.contact import LAST_NUMBER, OTHER_VALUES
from server.fleet.fleets import fleets
from server.registry.models.fleets import Device, DeviceConfiguration, Fleet, FleetConfiguration, FleetMember
from tests.server.devices import NOW
from tests.support.serverside import ServerSide

from .shop import Shop, answer

NIGHT = {"zone": "Europe/Berlin", "days": ["mon"], "start": "22:00", "end": "04:00"}


@pytest.fixture
def shop(server: ServerSide) -> Shop:
    return Shop(server)


def got(document: Configuration | None) -> Configuration:
    assert document is not None
    return document


def test_an_agent_without_a_fleet_gets_nothing_and_costs_no_row(shop: Shop) -> None:
    assert shop.ask() is None and shop.row() is None
    shop.fleet("north", 1, 1)
    assert shop.ask() is None and shop.row() is None, "a fleet that sets nothing"


def test_a_document_is_given_until_it_is_known_and_confirmed(shop: Shop) -> None:
    shop.fleet("north", 1, 1)
    number = shop.configure("north", {"updates.window": NIGHT, "updates.notice_h": 72})
    first = got(shop.ask())
    assert (first.agent_id, first.fleet, first.fleet_number) == (shop.id_of(), "north", number)
    assert values_of(first.members) == {"updates.window": NIGHT, "updates.notice_h": 72}
    assert first.number >= shop.till().now
    assert shop.ask() == first, "the reply was lost: the same again"
    assert shop.ask(first.number, answer(first)) is None
    row = shop.row()
    assert row is not None and (row.state, row.detail, row.number) == ("applied", "", number)
    assert row.reported_at == shop.till().now
    assert shop.ask(first.number, answer(first)) is None
    assert shop.ask() == first, "an agent that has lost its file, or trusts its key no more, gets it again"


def test_numbers_only_grow_also_after_the_registry_was_set_back(shop: Shop) -> None:
    shop.fleet("north", 1, 1)
    shop.configure("north", {"updates.notice_h": 72})
    first = got(shop.contact())
    shop.configure("north", {"updates.notice_h": 73})
    second = got(shop.contact())
    assert second.number > first.number and second.fleet_number == 2
    far = second.number + 500_000_000
    again = got(shop.ask(far))
    assert again.number == far + 1 and again.fleet_number == 2, "the registry has lost what the agent knows"
    assert [each.event for each in shop.server.audit.tail(5)].count("configuration.lost") == 1
    name = shop.id_of()
    with shop.server.database.write() as session:
        session.delete(session.get_one(DeviceConfiguration, name))
    assert got(shop.ask(again.number)).number == again.number + 1
    assert shop.ask(LAST_NUMBER) is None, "nothing can follow; it costs this agent alone"


def test_the_fleet_of_the_lowest_rank_that_has_a_configuration_counts(shop: Shop) -> None:
    shop.fleet("all", 9, 1, 2)
    shop.fleet("silent", 1, 1)
    shop.fleet("beta", 5, 1)
    shop.configure("all", {"updates.notice_h": 72})
    assert got(shop.contact()).fleet == "all"
    shop.configure("beta", {"updates.notice_h": 24})
    found = got(shop.contact())
    assert (found.fleet, values_of(found.members)) == ("beta", {"updates.notice_h": 24})
    assert got(shop.contact(number=2)).fleet == "all"
    shop.join("beta", 1, leaves=True)
    assert got(shop.contact()).fleet == "all"


def test_what_a_fleet_has_set_ends_when_it_ends_or_the_agent_leaves(shop: Shop) -> None:
    shop.fleet("north", 1, 1)
    shop.configure("north", {"updates.notice_h": 72})
    first = got(shop.contact())
    shop.join("north", 1, leaves=True)
    gone = got(shop.contact())
    assert gone.number > first.number and (gone.fleet, gone.fleet_number, gone.members) == (None, 0, Members())
    assert shop.contact() is None, "once"
    shop.join("north", 1)
    back = got(shop.contact())
    assert back.number > gone.number and back.fleet == "north"
    shop.end("north")
    assert got(shop.contact()).fleet is None
    assert shop.configure("north", {"updates.notice_h": 72}) == 2, "a number never means anything else"


def test_a_fleet_that_is_deleted_and_made_again_under_its_id_gives_no_number_twice(shop: Shop) -> None:
    shop.fleet("north", 1, 1)
    shop.configure("north", {"updates.notice_h": 72})
    shop.contact()
    with shop.server.database.write() as session:
        session.execute(delete(FleetConfiguration))
        session.execute(delete(FleetMember))
        session.execute(delete(Fleet))
    shop.fleet("north", 1, 1)
    assert shop.configure("north", {"updates.notice_h": 24}) == 2
    assert values_of(got(shop.contact()).members) == {"updates.notice_h": 24}


@pytest.mark.parametrize(
    ("state", "details"),
    [(ResultState.LIMITED, ("updates.notice_h: this machine's own file sets it",)), (ResultState.REFUSED, ("no", "never"))],
)
def test_what_an_agent_does_not_do_is_noted_once_with_its_reason(
    shop: Shop, state: ResultState, details: tuple[str, ...]
) -> None:
    shop.fleet("north", 1, 1)
    shop.configure("north", {"updates.notice_h": 72})
    found = got(shop.contact(state, details=details, **({"digest": "0f" * 32} if state is ResultState.LIMITED else {})))
    row = shop.row()
    assert row is not None and (row.state, row.detail) == (state.value, "; ".join(details))
    before = len(shop.server.audit.tail(50))
    assert shop.ask(found.number, answer(found, state, details)) is None
    records = shop.server.audit.tail(50)
    assert len(records) == before and (records[-1].event, records[-1].outcome) == ("agent.configuration", state.value)
    assert shop.ask(found.number, answer(found)) is None
    row = shop.row()
    assert row is not None and (row.state, row.detail) == ("applied", ""), "its file was corrected"


def test_an_agent_that_claims_to_have_applied_other_values_is_not_believed(shop: Shop) -> None:
    shop.fleet("north", 1, 1)
    shop.configure("north", {"updates.notice_h": 72})
    shop.contact(digest="0f" * 32)
    row = shop.row()
    assert row is not None and (row.state, row.detail) == ("limited", OTHER_VALUES)


def test_a_result_of_an_earlier_document_says_nothing_of_the_present_one(shop: Shop) -> None:
    shop.fleet("north", 1, 1)
    shop.configure("north", {"updates.notice_h": 72})
    first = got(shop.contact())
    shop.configure("north", {"updates.notice_h": 73})
    second = got(shop.ask(first.number, answer(first)))
    assert second.number > first.number
    row = shop.row()
    assert row is not None and row.state == "sent" and row.reported_at is None


def test_each_agents_document_is_its_own(shop: Shop) -> None:
    shop.fleet("north", 1, 1, 2)
    shop.configure("north", {"updates.notice_h": 72})
    one, two = got(shop.ask()), got(shop.ask(number=2))
    assert one.agent_id != two.agent_id and one.members == two.members


def test_the_server_says_that_it_can(shop: Shop) -> None:
    names: tuple[str, ...] = ("announce-capabilities",)
    assert CONFIGURATION in shop.till().ask(AnnounceCapabilities, AnnounceReply, capabilities=names).capabilities


def test_the_agents_of_a_deleted_fleet_go_by_the_next_one_or_by_their_files(shop: Shop) -> None:
    shop.fleet("north", 1, 1, 2)
    shop.fleet("south", 2, 2)
    shop.configure("north", {"updates.notice_h": 72})
    shop.configure("south", {"updates.notice_h": 48})
    first = got(shop.contact())
    shop.contact(number=2)
    with shop.server.database.write() as session:
        fleets.remove(session, "north", NOW)
    assert shop.row() is None and shop.row(2) is None
    ended, other = got(shop.contact()), got(shop.contact(number=2))
    assert (ended.fleet, ended.fleet_number, values_of(ended.members)) == (None, 0, {}) and ended.number > first.number
    assert (other.fleet, values_of(other.members)) == ("south", {"updates.notice_h": 48})
    row = shop.row()
    assert row is not None and (row.state, row.fleet_id) == ("applied", None)
    with shop.server.database.read() as session:
        assert session.get(Device, shop.id_of()) is not None
