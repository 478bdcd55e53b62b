"""A registry that was restored from an old backup: what was issued since is taken in again where that is safe.

To restore is to lose rows and to have counters go back; that is done here by hand, on both databases.
"""

import json

import pytest
from sqlalchemy import delete

from contracts.exchange import ReissueLicenses, SecretStatus
from server.keys.rootkey import read_root_key
from server.licensing.licenses.licenses import Order
from server.registry.models.core import Agent, Certificate, Counter, KeySetRow
from server.web.peers import Peer, peer_of
from server.web.responses import Response
from server.wiring import wire_exchange
from tests.server.agentside import AgentSide, answered
from tests.server.atonce import at_once
from tests.server.devices import NOW, Device, der, make_csr
from tests.support.serverside import ServerSide

DAY = 86_400
ID = "pos-000001"


class World:
    """A server with an agent whose certificate was renewed, which the registry has forgotten."""

    def __init__(self, server: ServerSide) -> None:
        self.server = server
        self.exchange = wire_exchange(server.server)
        self.first = peer_of(der(Device(1).come(server).certificates[0]))
        self.agent = AgentSide(ID)
        with server.database.write() as session:
            row = session.get(Agent, ID)
            assert row is not None
            row.identity_key = json.dumps(self.agent.public)
        pem = server.certificates.renew(ID, make_csr(Device(1).tls), NOW + DAY)[0]
        self.renewed = peer_of(der(pem))
        self.forget(self.renewed)

    def forget(self, peer: Peer) -> None:
        with self.server.database.write() as session:
            session.execute(delete(Certificate).where(Certificate.fingerprint == peer.fingerprint))

    def ask(self, peer: Peer, now: int = NOW + 2 * DAY, made: int | None = None, agent: AgentSide | None = None) -> Response:
        challenge = self.exchange.challenge(peer.fingerprint, now if made is None else made)
        signer = agent or self.agent
        fields = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1}
        return self.exchange.handle("secret-status", peer, signer.sign(signer.request(SecretStatus, challenge, **fields)), now)

    def events(self, name: str) -> list[dict[str, object]]:
        return [record.fields for record in self.server.audit.tail(1000) if record.event == name]


@pytest.fixture
def world(server: ServerSide) -> World:
    return World(server)


def test_a_renewed_certificate_that_was_lost_is_taken_in_again(world: World) -> None:
    assert world.exchange.refuse_unknown(world.renewed, NOW + 2 * DAY) is None
    assert world.events("certificate.adopted") == []
    for _ in range(2):
        assert world.ask(world.renewed).status == 200
    assert world.events("certificate.adopted") == [{"certificate": world.renewed.number}]
    assert world.ask(world.first).status == 401, "the one before it has been replaced, as by any renewal"
    with world.server.database.read() as session:
        row = session.get(Certificate, world.renewed.fingerprint)
        assert row is not None
        assert (row.state, row.issued_at, row.not_after) == ("active", NOW + DAY, world.renewed.not_after)
        assert row.used_at == NOW + 2 * DAY


def test_it_is_not_taken_in_by_a_request_that_is_not_the_agents(world: World) -> None:
    other = AgentSide(ID)
    for _ in range(2):
        assert world.ask(world.renewed, agent=other).status == 401
    assert world.events("registry.behind") == [{"agent": ID, "certificate": world.renewed.number}]
    assert world.ask(world.renewed, made=NOW).status == 409  # an old challenge: the request may be a copy
    assert world.events("certificate.adopted") == []


def test_one_from_before_a_change_of_status_counts_no_more(world: World) -> None:
    world.server.agents.set_status(ID, "revoked", NOW + 2 * DAY)
    world.server.agents.set_status(ID, "active", NOW + 2 * DAY)
    assert world.ask(world.renewed, NOW + 3 * DAY).status == 401


def test_one_from_before_the_device_was_provisioned_again_counts_no_more(world: World) -> None:
    again = peer_of(der(Device(1).come(world.server, now=NOW + 2 * DAY).certificates[0]))
    assert world.ask(world.renewed, NOW + 3 * DAY).status == 401
    assert world.ask(world.first, NOW + 3 * DAY).status == 401
    assert world.exchange.refuse_unknown(again, NOW + 3 * DAY) is None


def test_a_certificate_that_is_known_to_be_revoked_is_not_taken_for_a_lost_one(world: World) -> None:
    with world.server.database.write() as session:
        row = session.get(Certificate, world.first.fingerprint)
        assert row is not None
        row.state = "revoked"
    assert world.ask(world.first).status == 401
    assert world.events("certificate.adopted") == []


def test_the_lost_certificate_of_an_agent_that_is_revoked_counts_no_more(world: World) -> None:
    world.server.agents.set_status(ID, "revoked", NOW + 2 * DAY)
    assert world.ask(world.renewed, NOW + 3 * DAY).status == 401
    assert world.events("certificate.adopted") == []


@pytest.mark.parametrize("lost", [False, True])
def test_a_certificate_that_ends_while_a_request_waits_for_its_turn_counts_no_more(
    world: World, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents, database = world.server.agents, world.server.database
    write = database.write

    def late() -> object:
        monkeypatch.setattr(database, "write", write)
        agents.set_status(ID, "revoked", NOW + 2 * DAY)
        agents.set_status(ID, "active", NOW + 2 * DAY)
        return write()

    monkeypatch.setattr(database, "write", late)
    assert world.ask(world.renewed if lost else world.first, NOW + 2 * DAY).status == 401


def test_the_same_request_twice_at_once_is_answered_twice_with_a_lost_certificate(world: World) -> None:
    challenge = world.exchange.challenge(world.renewed.fingerprint, NOW + DAY)
    asked = world.agent.request(SecretStatus, challenge, current_secret_version=0, key_check=None, highest_version=0, serial=1)
    text = world.agent.sign(asked)
    answers = at_once([lambda: answered(world.exchange, "secret-status", world.renewed, text, NOW + DAY)] * 4)
    assert len(set(answers)) == 1 and answers[0][0] == 200
    assert len(world.events("certificate.adopted")) == 1


@pytest.mark.system
def test_taking_a_certificate_in_does_not_deadlock_with_revocations(world: World) -> None:
    server = world.server
    server.secrets.rotate_by_hand(ID, NOW)
    for number in range(12):
        server.licenses.issue(ID, Order(f"l{number}", "x", (), {}, NOW, NOW + 9 * DAY), NOW)

    def reissue(number: int) -> int:
        challenge = world.exchange.challenge(world.renewed.fingerprint, NOW + DAY)
        ids = tuple(f"l{n}" for n in range(12))
        asked = world.agent.request(ReissueLicenses, challenge, licenses=ids, secret_version=1)
        return answered(world.exchange, "reissue-licenses", world.renewed, world.agent.sign(asked), NOW + DAY)[0]

    def revoke(number: int) -> int:
        server.licenses.revoke(f"l{number}", NOW + DAY)
        return 200

    for number in range(6):
        world.forget(world.renewed)
        acts = [lambda number=number: reissue(number), lambda number=number: revoke(number)]
        assert at_once(acts) == [200, 200]


def test_the_number_of_an_agent_that_was_lost_is_not_given_again(world: World) -> None:
    lost = [peer_of(der(Device(number).come(world.server).certificates[0])) for number in (2, 3, 4)]
    assert [peer.serial for peer in lost] == [2, 3, 4]
    with world.server.database.write() as session:
        session.execute(delete(Certificate).where(Certificate.agent_id != ID))
        session.execute(delete(Agent).where(Agent.id != ID))
        counter = session.get(Counter, "serial")
        assert counter is not None
        counter.value = 1
    for peer in (lost[1], lost[1], lost[0]):
        assert (refused := world.exchange.refuse_unknown(peer, NOW)) is not None and refused.status == 401
    assert world.events("registry.behind") == [{"agent": "pos-000003", "serial": 3}]
    assert Device(9).come(world.server).serial == 4
    # The device itself comes with a new claim, and gets another number.
    assert Device(3).come(world.server).serial == 5


def test_key_sets_and_revocations_have_numbers_above_those_that_were_lost(world: World) -> None:
    server, root = world.server, read_root_key(world.server.place.directory.parent / "root.key", None)
    before = server.keys.key_set_number()
    server.key_lifecycle.rotate("license", NOW + DAY, root)
    lost = server.keys.key_set_number()
    server.secrets.rotate_by_hand(ID, NOW)
    server.licenses.issue(ID, Order("a", "x", (), {}, NOW, NOW + 9 * DAY), NOW)
    server.licenses.revoke("a", NOW + DAY)
    revocations = server.licenses.revocations(ID, NOW + DAY)[0]
    with server.database.write() as session:
        session.execute(delete(KeySetRow).where(KeySetRow.number == lost))
        for name, value in (("key_set", before), ("revocations", 0)):
            counter = session.get(Counter, name)
            assert counter is not None
            counter.value = value
    server.key_lifecycle.rotate("rotation", NOW + 2 * DAY, root)
    assert server.keys.key_set_number() > lost
    server.licenses.issue(ID, Order("b", "x", (), {}, NOW, NOW + 9 * DAY), NOW)
    server.licenses.revoke("b", NOW + 2 * DAY)
    assert server.licenses.revocations(ID, NOW + 2 * DAY)[0] > revocations
