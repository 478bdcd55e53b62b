"""Retiring an agent: what it gets from then on, what people see, how it comes back, and when its rows go."""

import json
from functools import partial

import pytest

from contracts.exchange import RefusalCode, RotateSecret, SecretStatus, purpose_of
from server import wiring
from server.agents import retirement
from server.agents.retirement import Retired
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.licensing.licenses.licenses import Order
from server.licensing.lists import license_list
from server.registry import events
from server.registry.models.core import Agent
from server.registry.upkeep.retention import DAY_S, Retention, set_retention
from server.web.peers import Peer, peer_of
from tests.server.agentside import AgentSide
from tests.server.atonce import at_once
from tests.server.devices import NOW, Device, der
from tests.server.exchange.test_checkins import private_jwk
from tests.support.serverside import Acts, ServerSide

ID, OTHER = "pos-000001", "pos-000002"
KEPT = Retention().retired_agents * DAY_S


@pytest.fixture
def peer(server: ServerSide) -> Peer:
    """The first of two agents, each with a secret and a license."""
    made = [Device(number).come(server, now=NOW) for number in (1, 2)]
    for number, each in enumerate(made, 1):
        server.secrets.rotate_by_hand(each.agent_id, NOW)
        server.licenses.issue(each.agent_id, Order(f"license-{number}", "x", (), {}, NOW, NOW + 999 * DAY_S), NOW)
    return peer_of(der(made[0].certificates[0]))


def retire(server: ServerSide, agent_id: str = ID, now: int = NOW, **named: str) -> Retired:
    done = Acts(retirement, server.database).retire(agent_id, now, **named)
    assert isinstance(done, Retired)
    return done


def states(server: ServerSide) -> dict[str, str]:
    with server.database.read() as session:
        return {row.license_id: row.state for row in license_list.listed(session, NOW + 1)}


def shown(server: ServerSide) -> dict[str, str]:
    return {row.agent_id: row.shown_status for row in server.agents.listed()}


def test_a_retired_agent_gets_nothing_any_more(server: ServerSide, peer: Peer) -> None:
    exchange = wiring.wire_exchange(server.server)
    agent = AgentSide(ID)
    agent.key = private_jwk(Device(1))
    now = peer.not_before + 4000
    check = server.secrets.listed(ID)[-1].key_check
    held = {"current_secret_version": 1, "key_check": check, "highest_version": 1, "serial": 1}

    def ask(kind: type[SecretStatus] | type[RotateSecret], **fields: object) -> tuple[int, RefusalCode | None, str]:
        request = agent.request(kind, str(exchange.admit(peer, now)), **held, **fields)
        reply = exchange.handle(purpose_of(kind), peer, agent.sign(request), now)
        return reply.status, reply.code, reply.text

    assert ask(SecretStatus)[0] == 200
    assert retire(server, now=now) == Retired(ID, now, 1, 420)
    for kind, fields in ((SecretStatus, {}), (RotateSecret, {"cause": "due"})):
        status, code, _signed = ask(kind, **fields)
        assert (status, code) == (403, RefusalCode.AGENT_REVOKED)
    for act in (
        partial(server.secrets.rotate_by_hand, ID, now),
        partial(server.secrets.demand, ID, now),
        partial(server.licenses.issue, ID, Order("more", "x", (), {}, NOW, now + 9), now),
        partial(server.agents.enroll_by_hand, ID, None, "software", {"agreement": {}}, now),
    ):
        with pytest.raises(RegistryError, match="agent 'pos-000001' is retired"):
            act()
    with pytest.raises(RequestRefused, match="this device is retired"):
        Device(1).come(server, now=now)
    assert len(server.secrets.listed(ID)) == 1


def test_people_see_it_apart_from_revoked_ones(server: ServerSide, peer: Peer) -> None:
    server.agents.set_status(OTHER, "revoked", NOW)
    retire(server)
    assert shown(server) == {ID: "retired", OTHER: "revoked"}
    assert [row.agent_id for row in server.agents.listed("retired")] == [ID]
    assert [row.agent_id for row in server.agents.listed("revoked")] == [OTHER]
    assert server.agents.listed("active") == []
    assert server.agents.count() == {"active": 0, "factory_only": 0, "revoked": 1, "retired": 1}
    assert states(server) == {"license-1": "agent_retired", "license-2": "agent_revoked"}
    assert server.agents.listed("retired")[0].as_json()["status"] == "retired"


def test_what_was_revoked_or_has_expired_says_so_still(server: ServerSide, peer: Peer) -> None:
    server.licenses.issue(ID, Order("short", "x", (), {}, NOW - 9, NOW + 1), NOW)
    server.licenses.revoke("license-1", NOW)
    assert retire(server).licenses == 1
    assert states(server) == {"license-1": "revoked", "license-2": "active", "short": "expired"}


def test_reinstating_takes_it_back_with_its_licenses(server: ServerSide, peer: Peer) -> None:
    retire(server)
    server.agents.set_status(ID, "active", NOW + 5)
    assert shown(server)[ID] == "active" and states(server)["license-1"] == "active"
    again = Device(1).come(server, now=NOW + 9)
    assert (again.agent_id, again.serial) == (ID, 1)
    records = [record for record in server.audit.tail(20) if record.event == "agent.status"]
    assert [(record.outcome, record.fields["was"]) for record in records] == [("retired", "active"), ("active", "retired")]
    wiring.housekeeping(server.server).run(NOW + KEPT + DAY_S, confirmed=True)
    assert server.agent(ID) is not None


def test_retiring_it_twice_changes_nothing(server: ServerSide, peer: Peer) -> None:
    first = retire(server)
    assert retire(server, now=NOW + DAY_S) == first
    row = server.agent(ID)
    assert row is not None and row.retired_at == NOW
    assert sum(record.outcome == "retired" for record in server.audit.tail(20)) == 1


def test_one_that_is_replaced_is_retired_with_its_successor_in_the_audit(server: ServerSide, peer: Peer) -> None:
    retire(server, replaced_by=OTHER)
    (record,) = [record for record in server.audit.tail(20) if record.outcome == "retired"]
    assert record.fields["replaced_by"] == OTHER and record.fields["agent"] == ID
    with server.database.read() as session:
        (event,) = [each for each in events.listed(session, 0, 100) if each.kind == "agent.retired"]
    assert (event.subject, event.fields) == (ID, {"agent": ID, "replaced_by": OTHER})
    with pytest.raises(RegistryError, match="agent 'pos-000001' is retired: only an active agent can replace another one"):
        retire(server, OTHER, replaced_by=ID)
    with pytest.raises(RegistryError, match="cannot replace itself"):
        retire(server, OTHER, replaced_by=OTHER)
    with pytest.raises(RegistryError, match="no agent 'pos-x' is enrolled"):
        retire(server, OTHER, replaced_by="pos-x")
    assert shown(server) == {ID: "retired", OTHER: "active"}


def test_two_that_replace_each_other_at_once_do_not_both_go(server: ServerSide, peer: Peer) -> None:
    def attempt(agent_id: str, successor: str) -> bool:
        try:
            retire(server, agent_id, replaced_by=successor)
        except RegistryError:
            return False
        return True

    assert sum(at_once([partial(attempt, ID, OTHER), partial(attempt, OTHER, ID)])) == 1
    assert sorted(shown(server).values()) == ["active", "retired"]


def test_the_transaction_is_the_callers(server: ServerSide, peer: Peer) -> None:
    """Who moves the licenses to another agent does both or neither."""
    with pytest.raises(ZeroDivisionError), server.database.write() as session:
        retirement.retire(session, ID, NOW, OTHER)
        session.flush()
        raise ZeroDivisionError
    assert shown(server) == {ID: "active", OTHER: "active"}
    assert server.agents.count()["retired"] == 0


def test_housekeeping_deletes_it_when_its_days_are_over(server: ServerSide, peer: Peer) -> None:
    keeping = wiring.housekeeping(server.server)
    server.agents.set_status(OTHER, "revoked", NOW)
    retire(server)
    assert "agent" not in keeping.run(NOW + KEPT - 1, confirmed=True).rows
    assert keeping.run(NOW + KEPT, confirmed=True).rows["agent"] == 1
    assert shown(server) == {OTHER: "revoked"}, "a revoked one stays until somebody deletes it"
    assert server.agents.count() == {"active": 0, "factory_only": 0, "revoked": 1, "retired": 0}
    (record,) = [record for record in server.audit.tail(20) if record.event == "agent.deleted"]
    assert (record.actor, record.fields["agent"], record.fields["retired_at"]) == ("server", ID, NOW)
    assert states(server) == {"license-2": "agent_revoked"}
    assert server.audit.verify(server.cipher.audit_key())[1] is None


def test_the_days_can_be_changed_and_many_go_one_by_one(server: ServerSide, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 8):
        Device(number).come(server, now=NOW)
        retire(server, f"pos-{number:06d}", now=NOW + number)
    with server.database.write() as session:
        set_retention(session, {"retired_agents": 2}, NOW)
    keeping = wiring.housekeeping(server.server)
    assert keeping.run(NOW + 2 * DAY_S + 5, confirmed=True).rows["agent"] == 5
    monkeypatch.setattr(wiring, "MOST_AGENTS", 1)
    assert wiring.housekeeping(server.server).run(NOW + 9 * DAY_S, confirmed=True).rows["agent"] == 1
    assert len(server.agents.listed()) == 1


def test_a_clock_that_is_wrong_for_a_moment_deletes_none(server: ServerSide, peer: Peer) -> None:
    keeping = wiring.housekeeping(server.server)
    keeping.run(NOW)
    retire(server)
    assert "agent" not in keeping.run(NOW + 10 * KEPT).rows
    assert shown(server)[ID] == "retired"


def test_revoking_it_keeps_it(server: ServerSide, peer: Peer) -> None:
    retire(server)
    server.agents.set_status(ID, "revoked", NOW)
    wiring.housekeeping(server.server).run(NOW + 2 * KEPT, confirmed=True)
    assert shown(server)[ID] == "revoked"


def test_its_certificates_are_revoked_and_a_program_that_looks_at_the_status_alone_refuses_it(
    server: ServerSide, peer: Peer
) -> None:
    retire(server)
    with server.database.read() as session:
        row = session.get_one(Agent, ID)
        assert (row.status, row.retired_at) == ("revoked", NOW)
    found = server.agents.by_certificate(peer.fingerprint, NOW)
    assert found is not None and found.status == "revoked"
    assert json.dumps(found.as_json())
