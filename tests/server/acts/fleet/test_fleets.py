"""Acts on fleets: what they are, who belongs to them, and what is counted of them."""

from typing import Any

import pytest

from server import serving
from server.accounts.roles import Role
from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.devices import registry
from server.fleet.fleets import figures, fleets
from server.registry.models.core import Agent, Setting
from server.registry.models.fleets import FleetConfiguration, FleetMember
from server.registry.models.rollouts import Rollout
from tests.server.acts.operators import Desk, account
from tests.server.devices import NOW, Device
from tests.support.serverside import Acts, ServerSide

IDS = ("pos-000001", "pos-000002", "pos-000003")
DAY_S = 86_400


class Shop:
    """Three agents and an operator."""

    def __init__(self, server: ServerSide) -> None:
        self.server, self.desk, self.now = server, Desk(server), NOW
        self.olga = account(server, "olga", Role.SECURITY_OFFICER)
        for number in (1, 2, 3):
            Device(number).come(server)
        self.do("devices.tag", device_ids=list(IDS[:2]), tags=["beta"])

    def do(self, act: str, **body: Any) -> Any:
        return self.desk.do(act, self.olga, self.now, **body)

    def of(self, fleet: str) -> list[str]:
        return [row.device_id for row in self.do("devices.list", fleet=fleet).items]


@pytest.fixture
def shop(server: ServerSide) -> Shop:
    return Shop(server)


def test_a_fleet_has_those_it_selects_and_those_put_into_it(shop: Shop) -> None:
    made = shop.do("fleets.create", fleet_id="beta", selection="tag=beta", tags=["pilot"]).model_dump()
    assert (made["name"], made["rank"], made["tags"], made["static"], made["revision"]) == ("beta", 10, ("pilot",), 0, 1)
    assert shop.of("beta") == list(IDS[:2])
    assert shop.do("fleets.add_members", fleet_id="beta", device_ids=list(IDS[1:])).count == 2
    assert shop.do("fleets.add_members", fleet_id="beta", device_ids=list(IDS[1:])).count == 0
    assert shop.of("beta") == list(IDS)
    # What its selection selects stays in it.
    assert shop.do("fleets.remove_members", fleet_id="beta", device_ids=list(IDS)).count == 2
    assert shop.of("beta") == list(IDS[:2])
    with pytest.raises(NotFound, match="there is no device 'nobody'"):
        shop.do("fleets.add_members", fleet_id="beta", device_ids=["nobody", IDS[2]])
    assert shop.of("beta") == list(IDS[:2])


def test_fleets_are_in_the_order_of_their_rank_and_so_are_those_of_a_device(shop: Shop) -> None:
    for fleet_id, rank in (("a", None), ("b", None), ("c", 5)):
        shop.do("fleets.create", fleet_id=fleet_id, selection="kind=agent", rank=rank)
    listed = shop.do("fleets.list")
    assert [(row.fleet_id, row.rank) for row in listed.items] == [("c", 5), ("a", 10), ("b", 20)]
    first = shop.do("fleets.list", limit=2)
    rest = shop.do("fleets.list", after=first.after)
    assert [row.fleet_id for row in rest.items] == ["b"]
    assert shop.do("devices.show", device_id=IDS[0]).fleets == ("c", "a", "b")
    with pytest.raises(Conflict, match="fleet 'a' has rank 10"):
        shop.do("fleets.change", fleet_id="b", rank=10, if_match="1")
    shop.do("fleets.change", fleet_id="b", rank=1, if_match="1")
    assert shop.do("devices.show", device_id=IDS[0]).fleets == ("b", "c", "a")


def test_a_selection_is_tried_before_a_fleet_has_it(shop: Shop) -> None:
    found = shop.do("fleets.match", selection="tag=beta")
    assert (found.count, found.devices) == (2, IDS[:2])
    assert shop.do("fleets.match", selection="tag=gamma").count == 0
    with pytest.raises(Invalid, match="expected a term"):
        shop.do("fleets.match", selection="")


def test_a_selection_that_cannot_be_is_refused(shop: Shop) -> None:
    with pytest.raises(Invalid, match="at column 8: expected a value"):
        shop.do("fleets.create", fleet_id="a", selection="fleet =")
    with pytest.raises(Invalid, match="a fleet does not select itself"):
        shop.do("fleets.create", fleet_id="a", selection="fleet=a")
    with pytest.raises(NotFound, match="there is no fleet 'b'"):
        shop.do("fleets.create", fleet_id="a", selection="fleet=b")
    shop.do("fleets.create", fleet_id="a")
    with pytest.raises(Conflict, match="there is a fleet 'a' already"):
        shop.do("fleets.create", fleet_id="a")
    shop.do("fleets.change", fleet_id="a", selection="tag=beta", if_match="1")
    changed = shop.do("fleets.change", fleet_id="a", selection="", if_match="2")
    assert (changed.selection, changed.revision) == (None, 3)


def test_fleets_are_bounded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "MAX_FLEETS", 1)
    shop.do("fleets.create", fleet_id="a")
    with pytest.raises(Conflict, match="there are 1 fleets, which is the limit"):
        shop.do("fleets.create", fleet_id="b")


def test_a_fleet_is_deleted_with_what_it_has_and_not_while_it_is_needed(shop: Shop) -> None:
    shop.do("fleets.create", fleet_id="a")
    shop.do("fleets.create", fleet_id="b", selection="not fleet=a")
    shop.do("fleets.add_members", fleet_id="a", device_ids=[IDS[0]])
    assert shop.of("b") == list(IDS[1:])
    with pytest.raises(Conflict, match="fleet 'b' selects members of 'a'"):
        shop.do("fleets.delete", fleet_id="a")
    shop.do("fleets.change", fleet_id="b", selection="", if_match="1")
    rollout = dict.fromkeys(("product", "path", "version", "build_id", "policy", "state", "detail", "created_by"), "x")
    with shop.server.database.write() as session:
        session.add(Rollout(id="r-1", fleet_id="a", created_at=NOW, updated_at=NOW, revision=1, **rollout))
        session.add(FleetConfiguration(fleet_id="a", number=1, content="{}", created_by="olga", created_at=NOW))
    with pytest.raises(Conflict, match="rollout 'r-1' of fleet 'a' has not ended"):
        shop.do("fleets.delete", fleet_id="a")
    with shop.server.database.write() as session:
        session.get_one(Rollout, "r-1").ended_at = NOW
    shop.do("fleets.delete", fleet_id="a")
    with shop.server.database.read() as session:
        assert session.get(FleetConfiguration, ("a", 1)) is None and session.get(FleetMember, ("a", IDS[0])) is None
    with pytest.raises(NotFound, match="there is no fleet 'a'"):
        shop.do("fleets.show", fleet_id="a")
    assert shop.do("devices.show", device_id=IDS[0]).device_id == IDS[0]


def test_devices_in_service_are_counted_with_their_certificates(shop: Shop) -> None:
    """The first agent has just contacted the server, the second one long ago, and the third one is revoked."""
    shop.do("fleets.create", fleet_id="beta", selection="tag=beta")
    shop.do("fleets.create", fleet_id="nobody", selection="tag=nobody")
    Acts(registry, shop.server.database).register("shelf-1", "ddi", "", NOW)
    later = NOW + 29 * DAY_S
    with shop.server.database.write() as session:
        for agent_id, seen in zip(IDS, (later, NOW, later), strict=True):
            session.get_one(Agent, agent_id).last_seen = seen
    shop.do("devices.block", device_id=IDS[2])
    assert shop.do("fleets.show", fleet_id="beta").counts is None
    found = figures.count(shop.server.database, later)
    assert (found.at, found.devices.total, found.devices.connected) == (later, 3, 1)
    within = dict(zip(figures.DAYS, found.devices.certificates.within, strict=True))
    assert (within[0], within[3], found.devices.certificates.count, found.devices.certificates.average) == (0, 2, 2, 1.0)
    assert (found.fleets["beta"].total, found.fleets["beta"].connected) == (2, 1)
    assert found.fleets["nobody"].certificates.average is None
    counts = shop.do("fleets.show", fleet_id="beta").counts.model_dump()
    assert counts == {"at": later, "devices": 2, "connected": 1, "certificate_days": 1.0}
    ended = figures.count(shop.server.database, later + 9 * DAY_S).devices.certificates
    assert (ended.within[0], ended.days) == (2, 0.0)
    with shop.server.database.read() as session:
        assert figures.known(session) is not None
    with shop.server.database.write() as session:
        session.merge(Setting(name=figures.NAME, value='{"of": "another release"}'))
        assert figures.known(session) is None


def test_a_job_counts_at_an_interval(shop: Shop) -> None:
    assert serving.DEVICES.every_s == 300
    serving.count_devices(shop.server.server, NOW)
    with shop.server.database.read() as session:
        known = figures.known(session)
    assert known is not None and known.devices.total == 3
