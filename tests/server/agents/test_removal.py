"""Deleting an agent: what goes, what stays, and what its device may do afterwards."""

import pytest
from sqlalchemy import func, select

from server.agents import removal
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.licensing.licenses.licenses import Order
from server.registry.models.core import Agent, Base, Certificate, EnrollmentToken, License, Secret
from server.registry.upkeep.retention import DAY_S, set_retention
from server.web.peers import peer_of
from server.wiring import wire_exchange
from tests.server.devices import NOW, Device, der
from tests.support.serverside import Acts, ServerSide

ID, OTHER = "pos-000001", "pos-000002"
LATER = NOW + 90 * DAY_S


def count(server: ServerSide, model: type[Base]) -> int:
    with server.database.read() as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


@pytest.fixture
def world(server: ServerSide) -> ServerSide:
    """Two agents with secrets and licenses."""
    for number, name in ((1, ID), (2, OTHER)):
        Device(number).come(server, now=NOW)
        for _ in range(2):
            server.secrets.rotate_by_hand(name, NOW)
        server.licenses.issue(name, Order(f"license-{number}", "x", (), {}, NOW, LATER), NOW)
    server.licenses.revoke("license-1", NOW)
    return server


def remove(server: ServerSide, now: int) -> removal.Removed:
    removed = Acts(removal, server.database).remove(ID, now)
    assert isinstance(removed, removal.Removed)
    return removed


def test_only_a_revoked_agent_is_deleted_and_not_too_early(world: ServerSide) -> None:
    with pytest.raises(RegistryError, match="is active: only a revoked agent can be deleted"):
        remove(world, LATER)
    world.agents.set_status(ID, "revoked", NOW)
    with pytest.raises(RegistryError, match="is kept for 1 more day: revoked agents are kept for 90 days"):
        remove(world, LATER - 1)
    world.agents.set_status(ID, "active", NOW)
    with pytest.raises(RegistryError, match="is active"):
        remove(world, LATER)
    with pytest.raises(RegistryError, match="no agent 'pos-x' is enrolled"):
        Acts(removal, world.database).remove("pos-x", LATER)
    assert count(world, Agent) == 2
    world.agents.set_status(ID, "revoked", NOW)
    with world.database.write() as session:
        set_retention(session, {"agents": 7}, NOW)
    remove(world, NOW + 7 * DAY_S)


def test_everything_of_the_agent_goes_and_nothing_else(world: ServerSide) -> None:
    before = world.agent(ID)
    world.agents.set_status(ID, "revoked", NOW)
    assert remove(world, LATER) == removal.Removed(certificates=1, secrets=2, licenses=1, enrollment_tokens=0)
    for model, rows in ((Agent, 1), (Certificate, 1), (Secret, 2), (License, 1)):
        assert count(world, model) == rows
        with world.database.read() as session:
            owners = set(session.scalars(select(Agent.id if model is Agent else model.agent_id)))  # type: ignore[attr-defined]
        assert owners == {OTHER}
    assert world.agents.count() == {"active": 1, "revoked": 0, "factory_only": 0, "retired": 0}
    (record,) = [record for record in world.audit.tail(5) if record.event == "agent.deleted"]
    assert before is not None and record.fields["agent"] == ID and record.fields["serial"] == 1
    assert record.fields["hw_id"] == before.hw_id and record.fields["revoked_at"] == NOW
    assert record.fields["identity"].startswith("sha256:") and record.fields["secrets"] == 2
    assert world.audit.verify(world.cipher.audit_key())[1] is None


def test_a_deleted_device_is_unknown_and_its_tokens_open_nothing(server: ServerSide) -> None:
    """The device could have used its token again until it expires, had it not been revoked."""
    device = Device(1)
    first = device.come(server, now=NOW)
    with server.database.write() as session:
        for token in session.scalars(select(EnrollmentToken)):
            token.expires_at = LATER + DAY_S
    text = server.enrollment_tokens.create(device.hw_id, False, 200 * DAY_S, NOW)
    server.agents.set_status(ID, "revoked", NOW)
    assert remove(server, LATER).enrollment_tokens == 2
    peer = peer_of(der(first.certificates[0]))
    refused = wire_exchange(server.server).refuse_unknown(peer, NOW + DAY_S)
    assert refused is not None and refused.status == 401
    with pytest.raises(RequestRefused, match="no such enrollment token"):
        server.enrollment_tokens.use(text, device.hw_id, LATER)
    again = device.come(server, now=LATER)
    assert (again.serial, again.agent_id) == (2, "pos-000002"), "a new token makes a new agent, with a new number"
