"""What a clock that was ahead has left in the registry, and what an operator's word corrects of it; on both databases."""

import pytest
from sqlalchemy import select

from server.agents import misdated
from server.agents.misdated import correct
from server.registry.models.core import Agent, Certificate, Secret
from tests.server.devices import NOW, Device, make_csr
from tests.support.manyagents import agent_id, make_agents
from tests.support.serverside import ServerSide

DAY = 86_400
ONE, TWO = "pos-000001", "pos-000002"


def test_only_what_is_later_than_the_present_is_found_and_corrected(server: ServerSide) -> None:
    Device(1).come(server)
    ahead = NOW + 20 * DAY
    Device(2).come(server, now=ahead)
    server.secrets.rotate(ONE, 0, None, 0, ahead)
    server.certificates.renew(ONE, make_csr(Device(1).tls), ahead)
    server.key_lifecycle.rotate("tls", ahead, None)
    found = correct(server.database, NOW + 100)
    assert (found.certificates, found.secrets, found.agents) == (2, 1, 1)
    assert [kind for kind, _kid in found.keys] == ["tls"]
    with server.database.read() as session:
        one, two = session.get_one(Agent, ONE), session.get_one(Agent, TWO)
        assert (one.created_at, one.updated_at) == (NOW, NOW)
        assert (two.created_at, two.updated_at) == (NOW + 100, NOW + 100)
        # What is signed keeps its dates.
        assert max(session.scalars(select(Certificate.issued_at))) == ahead
        assert session.scalars(select(Secret.made_at)).all() == [ahead]
    assert correct(server.database, NOW + 100).agents == 0


def test_nothing_is_found_where_nothing_is_later(server: ServerSide) -> None:
    Device(1).come(server)
    found = correct(server.database, NOW)
    assert (found.certificates, found.secrets, found.agents, found.keys) == (0, 0, 0, ())


@pytest.mark.parametrize("agents", [0, 6, 7])
def test_a_fleet_is_corrected_in_batches_between_which_others_have_their_turn(
    server: ServerSide, monkeypatch: pytest.MonkeyPatch, agents: int
) -> None:
    monkeypatch.setattr(misdated, "BATCH", 3)
    make_agents(server.database, 0, agents, NOW + 20 * DAY)
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1
        server.agents.saw(agent_id(0), NOW, None, None)

    assert correct(server.database, NOW, pause).agents == agents
    assert pauses == agents // 3
    assert {row.updated_at for row in server.agents.listed()} == ({NOW} if agents else set())


def test_an_agent_that_retired_in_the_future_goes_in_its_time(server: ServerSide) -> None:
    Device(1).come(server)
    with server.database.write() as session:
        session.get_one(Agent, ONE).status = "revoked"
        session.get_one(Agent, ONE).retired_at = NOW + 9 * DAY
    assert correct(server.database, NOW).agents == 1
    assert server.agents.listed("retired")[0].retired_at == NOW
