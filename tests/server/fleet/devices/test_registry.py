"""Devices that are agents: made, moved and removed with the agent, and what they report."""

import pytest
from sqlalchemy import select

from contracts.contact.updates import RunningVersion, UpdatesReply, UpdatesRequest
from server.agents import device_rows, removal
from server.base.errors import Conflict, NotFound, RegistryError
from server.base.refused import RequestRefused
from server.fleet.devices import registry
from server.registry.models.fleets import Device as Row
from server.registry.models.fleets import DeviceTag, DeviceVersion, FleetMember
from server.registry.upkeep.retention import DAY_S
from tests.server.devices import NOW, Device, public_jwk_of
from tests.server.licensing.states.test_changes import make_till
from tests.support.serverside import Acts, ServerSide

ID = "pos-000001"


def running(product: str, version: str, build: str = "b1") -> RunningVersion:
    return RunningVersion(product=product, version=version, build_id=build)


def ddi(server: ServerSide, device_id: str) -> None:
    Acts(registry, server.database).register(device_id, "ddi", "", NOW)


def kinds(server: ServerSide) -> dict[str, str]:
    with server.database.read() as session:
        return {str(device_id): str(kind) for device_id, kind in session.execute(select(Row.id, Row.kind))}


def by_hand(server: ServerSide, agent_id: str) -> None:
    keys = {"agreement": public_jwk_of(Device(1).agreement)}
    server.agents.enroll_by_hand(agent_id, None, "software", keys, NOW)


def test_each_agent_is_a_device_however_it_was_enrolled(server: ServerSide) -> None:
    Device(1).come(server)
    Device(1).come(server)  # again
    by_hand(server, "pos-hand")
    by_hand(server, "pos-hand")
    assert kinds(server) == {ID: "agent", "pos-hand": "agent"}


def test_an_id_belongs_to_one_device(server: ServerSide) -> None:
    ddi(server, "shelf-1")
    with pytest.raises(RequestRefused, match="the id 'shelf-1' belongs to another device"):
        Device(1).come(server, "shelf-1")
    with pytest.raises(Conflict, match="device 'shelf-1' is no agent"):
        by_hand(server, "shelf-1")
    ddi(server, ID)
    assert Device(2).come(server).agent_id.startswith(f"{ID}-")
    assert kinds(server)[ID] == "ddi"
    for taken in (ID, f"{ID}-{Device(2).hw_id[:8]}"):
        with pytest.raises(Conflict, match="belongs to another device"):
            ddi(server, taken)


def test_a_device_goes_with_its_agent_and_nothing_else_goes(server: ServerSide) -> None:
    for number in (1, 2):
        Device(number).come(server)
    with server.database.write() as session:
        for device_id in (ID, "pos-000002"):
            session.add_all([DeviceTag(device_id=device_id, tag="x"), FleetMember(fleet_id="f", device_id=device_id)])
            registry.note_contact(session, device_id, (running("pos", "1.0"),), None, NOW)
    server.agents.set_status(ID, "revoked", NOW)
    Acts(removal, server.database).remove(ID, NOW + 90 * DAY_S)
    with server.database.read() as session:
        for owner in (Row.id, DeviceTag.device_id, FleetMember.device_id, DeviceVersion.device_id):
            assert list(session.scalars(select(owner))) == ["pos-000002"]


def test_the_site_follows_the_agents(server: ServerSide) -> None:
    from server.licensing.sales import seats

    Device(1).come(server)
    Acts(server.server.customers, server.database).create("c-1", {}, NOW)
    Acts(server.server.customers, server.database).create_site("shop-1", "c-1", {}, NOW)
    for place in ("shop-1", None):
        Acts(seats, server.database).assign_site(ID, place, NOW)
        with server.database.read() as session:
            assert registry.required(session, ID).site_id == place


def test_a_contact_writes_only_what_changed(server: ServerSide) -> None:
    Device(1).come(server)
    note = Acts(registry, server.database).note_contact
    first = note(ID, (running("pos", "1.0"), running("core", "3")), "pos-x200", NOW)
    assert first == registry.Changed(True, ("core", "pos"))
    assert note(ID, (running("pos", "1.0"), running("core", "3")), "pos-x200", NOW + 5) == registry.Changed(False, ())
    assert note(ID, (running("pos", "1.0", "b2"),), None, NOW + 9) == registry.Changed(False, ("core", "pos"))
    with server.database.read() as session:
        device = registry.required(session, ID)
        assert (device.hardware, device.updated_at, device.revision) == ("pos-x200", NOW, 2)
        rows = [(row.product, row.version, row.build_id, row.reported_at) for row in session.scalars(select(DeviceVersion))]
    assert rows == [("pos", "1.0", "b2", NOW + 9)]


def test_an_agent_that_an_older_release_enrolled_becomes_a_device_at_its_contact(server: ServerSide) -> None:
    Device(1).come(server)
    Acts(device_rows, server.database).remove(ID)
    Acts(registry, server.database).note_contact(ID, (), None, NOW)
    assert kinds(server) == {ID: "agent"}


def test_nobody_is_no_device(server: ServerSide) -> None:
    for act in ("required", "ensure_agent"):
        arguments = ("nobody",) if act == "required" else ("nobody", NOW)
        with pytest.raises(NotFound) as caught:
            getattr(Acts(registry, server.database), act)(*arguments)
        assert isinstance(caught.value, RegistryError) and "list" in str(caught.value)


def test_a_contact_for_updates_says_what_the_device_runs(server: ServerSide) -> None:
    till = make_till(server, 1)
    said = {"directive": 0, "outcomes": ()}
    till.ask(UpdatesRequest, UpdatesReply, running=(running("pos", "1.1.0"),), hardware="pos-x200", **said)
    agent_id = till.agent.agent_id
    with server.database.read() as session:
        assert registry.required(session, agent_id).hardware == "pos-x200"
        assert [row.version for row in session.scalars(select(DeviceVersion).where(DeviceVersion.device_id == agent_id))] == [
            "1.1.0"
        ]
    # A row that should not be there costs the agent no update.
    with server.database.write() as session:
        registry.required(session, agent_id).kind = "ddi"
    till.ask(UpdatesRequest, UpdatesReply, running=(), **said)
