"""Acts on devices: what is listed and shown, labels, and the blocklist."""

from typing import Any

import pytest

from contracts.contact.updates import RunningVersion
from contracts.exchange import RefusalCode, Refused
from server.accounts.roles import Role
from server.acts.caller import Caller
from server.acts.fleet.devices import SHEET
from server.acts.runner import PreconditionMissing
from server.base.errors import Conflict, Invalid, NotAllowed, NotFound
from server.exchange.content import CONTACT_S
from server.fleet.ddi import attributes as reported
from server.fleet.ddi.feedback import Mode
from server.fleet.devices import labels, registry
from server.fleet.devices.blocklist import require_admitted
from server.fleet.devices.connection import INTERVAL_S, SILENT_S, connection
from server.registry.models.fleets import DeviceSeen
from tests.server.acts.operators import Desk, account
from tests.server.devices import NOW, Device
from tests.server.licensing.states.test_changes import make_till
from tests.support.serverside import Acts, ServerSide

ID, DAY_S = "pos-000001", 86_400


class Shop:
    """Two agents, a device that is none, and an operator."""

    def __init__(self, server: ServerSide) -> None:
        self.server, self.desk = server, Desk(server)
        self.olga: Caller = account(server, "olga", Role.SECURITY_OFFICER)
        self.now = NOW
        for number in (1, 2):
            Device(number).come(server)
        self.devices = Acts(registry, server.database)
        self.devices.register("shelf-1", "ddi", "Shelf", NOW)

    def do(self, act: str, **body: Any) -> Any:
        return self.desk.do(f"devices.{act}", self.olga, self.now, **body)

    def listed(self, **body: Any) -> list[str]:
        return [row.device_id for row in self.do("list", **body).items]


@pytest.fixture
def shop(server: ServerSide) -> Shop:
    return Shop(server)


def test_a_device_is_shown_with_all_that_is_known_of_it(shop: Shop) -> None:
    running = (RunningVersion(product="pos", version="2.0", build_id="b7"),)
    shop.devices.note_contact(ID, running, "pos-x200", NOW)
    shop.do("change", device_id=ID, name="Till 1", zone="Europe/Berlin", if_match="2")
    shop.do("set", device_id=ID, attributes={"lane": "7"})
    shop.do("tag", device_ids=[ID], tags=["beta", "alpha"])
    shop.server.agents.saw(ID, NOW, None, None)
    shop.now = NOW + 10 * DAY_S
    found = shop.do("show", device_id=ID).model_dump()
    assert found["created_at"] == NOW and found["revision"] == 5
    certificate = found["certificates"][0]
    assert (certificate["days"], certificate["not_after"], certificate["in_use"]) == (20, NOW + 30 * DAY_S, False)
    expected = {
        "device_id": ID, "kind": "agent", "name": "Till 1", "hardware": "pos-x200", "site": None, "zone": "Europe/Berlin",
        "status": "active", "attestation": "attested", "last_contact": NOW, "connection": "silent",
        "certificate_ends": NOW + 30 * DAY_S, "certificate_days": 20, "versions": {"pos": "2.0"},
        "tags": ("alpha", "beta"), "fleets": (),
        "running": ({"product": "pos", "version": "2.0", "build_id": "b7", "reported_at": NOW},),
        "attributes": ({"name": "lane", "value": "7", "source": "operator", "updated_at": NOW},),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_devices_are_listed_by_selection_page_by_page(shop: Shop) -> None:
    shop.do("tag", device_ids=[ID, "shelf-1"], tags=["beta"])
    assert shop.listed() == [ID, "pos-000002", "shelf-1"]
    assert shop.listed(where="tag=beta") == [ID, "shelf-1"]
    assert shop.listed(where="tag=beta and kind=ddi") == ["shelf-1"]
    assert shop.listed(since=ID) == ["pos-000002", "shelf-1"]
    first = shop.do("list", limit=2)
    assert (len(first.items), first.after) == (2, "pos-000002")
    assert shop.listed(after="pos-000002") == ["shelf-1"]
    with pytest.raises(Invalid, match="at column 4"):
        shop.do("list", where="tag")
    with pytest.raises(NotFound, match="there is no fleet 'x'"):
        shop.do("list", fleet="x")


def test_a_device_of_another_kind_is_listed_by_its_own_contact(shop: Shop) -> None:
    with shop.server.database.write() as session:
        session.add(DeviceSeen(device_id="shelf-1", at=NOW - 400))
    (row,) = shop.do("list", where="kind=ddi").items
    assert (row.last_contact, row.connection, row.status, row.attestation) == (NOW - 400, "seen", "active", None)
    assert SHEET.cells(row)[:3] == ("shelf-1", "ddi", "Shelf") and len(SHEET.cells(row)) == len(SHEET.columns)


@pytest.mark.parametrize(
    ("ago", "state"),
    [(None, "never"), (0, "seen"), (5400, "seen"), (5401, "late"), (SILENT_S, "late"), (SILENT_S + 1, "silent")],
)
def test_the_connection_is_judged_by_the_last_contact(ago: int | None, state: str) -> None:
    assert connection("agent", None if ago is None else NOW - ago, NOW).value == state


def test_an_agent_is_late_only_after_it_should_have_come() -> None:
    assert INTERVAL_S["agent"] == CONTACT_S


def test_tags_are_given_to_all_or_to_none(shop: Shop) -> None:
    with pytest.raises(NotFound, match="there is no device 'nobody'"):
        shop.do("tag", device_ids=[ID, "nobody"], tags=["beta"])
    assert shop.listed(where="tag=beta") == []
    shop.do("tag", device_ids=[ID, ID], tags=["beta", "beta"])
    before = shop.server.audit.newest()
    shop.do("tag", device_ids=[ID], tags=["beta"])  # has it already
    shop.do("untag", device_ids=["pos-000002"], tags=["beta"])  # has it not
    assert shop.server.audit.newest() == before
    shop.do("untag", device_ids=[ID], tags=["beta"])
    assert shop.listed(where="tag=beta") == []
    (record,) = [each for each in shop.server.audit.tail(3) if each.event == "device.untagged"]
    assert (record.fields["device"], record.fields["names"]) == (ID, ["beta"])
    assert shop.do("tag", device_ids=[ID], tags=[f"t{n}" for n in range(64)]).count == 1
    with pytest.raises(Conflict, match="more than 64 tags"):
        shop.do("tag", device_ids=[ID], tags=["one-more"])


def test_a_device_does_not_replace_what_an_operator_has_written(shop: Shop) -> None:
    """Threat-model T60: it would move itself to another fleet."""
    report = Acts(reported, shop.server.database).keep
    assert report(ID, Mode.MERGE, {"lane": "1", "os": "12"}, NOW) == {"lane": "1", "os": "12"}
    shop.do("set", device_id=ID, attributes={"lane": "7"})
    assert report(ID, Mode.MERGE, {"lane": "1", "os": "13"}, NOW + 1) == {"os": "13"}
    assert shop.listed(where="attr.lane=7 and attr.os=13") == [ID]
    shop.do("unset", device_id=ID, names=["lane", "other"])
    assert report(ID, Mode.MERGE, {"lane": "1"}, NOW + 3) == {"lane": "1", "os": "13"}


@pytest.mark.parametrize(
    ("values", "text"),
    [({"a b": "x"}, "no name of an attribute"), ({"a": "x\ny"}, "must be one line"), ({"a": ""}, "must be one line")],
)
def test_a_malformed_attribute_is_refused(shop: Shop, values: dict[str, str], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        Acts(labels, shop.server.database).put_attributes(ID, values, NOW)


def test_attributes_are_bounded(shop: Shop) -> None:
    put = Acts(labels, shop.server.database).put_attributes
    put(ID, {f"a{n}": "x" for n in range(64)}, NOW)
    with pytest.raises(Conflict, match="more than 64 attributes"):
        put(ID, {"one-more": "x"}, NOW)


def test_a_change_names_what_was_seen(shop: Shop) -> None:
    with pytest.raises(PreconditionMissing):
        shop.do("change", device_id=ID, name="x")
    with pytest.raises(Invalid, match="not a time zone"):
        shop.do("change", device_id=ID, zone="Europe/Nowhere", if_match="1")


def test_a_blocked_device_of_another_kind_is_refused_until_it_is_unblocked(shop: Shop) -> None:
    assert shop.do("block", device_id="shelf-1").status == "blocked"
    said = "is blocked; 'license-server devices unblock shelf-1'"
    with shop.server.database.read() as session, pytest.raises(NotAllowed, match=said):
        require_admitted(registry.required(session, "shelf-1"))
    shop.do("block", device_id="shelf-1")  # once more: nothing happens
    assert shop.do("unblock", device_id="shelf-1").status == "active"
    with shop.server.database.read() as session:
        require_admitted(registry.required(session, "shelf-1"))
    events = [each.event for each in shop.server.audit.tail(9) if each.event.startswith("device.")]
    assert events == ["device.blocked", "device.unblocked"]


def test_a_blocked_agent_is_refused_at_its_next_request(server: ServerSide) -> None:
    """Its connection is open, and its certificate was verified when that began: what counts is the registry."""
    till, desk, olga = make_till(server, 1), Desk(server), account(server, "olga", Role.SECURITY_OFFICER)
    till.status()
    agent_id = till.agent.agent_id
    assert desk.do("devices.block", olga, till.now, device_id=agent_id).status == "blocked"
    with pytest.raises(Refused) as refused:
        till.status()
    assert refused.value.refusal.code is RefusalCode.AGENT_REVOKED
    shown = desk.do("devices.unblock", olga, till.now, device_id=agent_id)
    assert (shown.status, shown.certificates) == ("active", ())  # it must be provisioned again


def test_who_blocks_and_retires_is_shown(shop: Shop) -> None:
    shop.do("block", device_id=ID)
    assert [row.status for row in shop.do("list").items] == ["blocked", "active", "active"]
    shop.desk.do("agents.retire", shop.olga, NOW, agent_id="pos-000002")
    assert [row.status for row in shop.do("list").items] == ["blocked", "retired", "active"]
