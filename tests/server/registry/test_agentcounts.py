"""The counts of agents by status follow every change of an agent."""

import random

from sqlalchemy import case, func, select

from server.agents import retirement
from server.registry.agentcounts import add
from server.registry.models.core import Agent
from tests.server.atonce import at_once
from tests.server.devices import NOW, Device
from tests.support.serverside import Acts, ServerSide

ZERO = {"active": 0, "factory_only": 0, "revoked": 0, "retired": 0}


def retirements(server: ServerSide) -> Acts:
    return Acts(retirement, server.database)


def real(server: ServerSide) -> dict[str, int]:
    with server.database.read() as session:
        shown = case((Agent.retired_at.is_not(None), "retired"), else_=Agent.status)
        rows = session.execute(select(shown, func.count()).group_by(shown)).all()
        return ZERO | {str(status): int(count) for status, count in rows}


def test_the_counts_are_those_of_the_rows_after_any_acts(server: ServerSide) -> None:
    assert server.agents.count() == ZERO
    rng, ids = random.Random(1), []
    for number in range(45):
        if number % 3 == 0:
            ids.append(Device(number).come(server, factory_only=rng.random() < 0.4).agent_id)
        elif number % 3 == 1:
            retirements(server).retire(rng.choice(ids), NOW)
        else:
            server.agents.set_status(rng.choice(ids), rng.choice(["active", "revoked", "factory_only"]), NOW)
        assert server.agents.count() == real(server), number
    alone = _without_rows(server)
    retirements(server).retire(alone, NOW)
    with server.database.write() as session:
        session.delete(session.get_one(Agent, alone))
    assert server.agents.count() == real(server)


def _without_rows(server: ServerSide) -> str:
    """An agent that nothing else refers to."""
    keys = {"agreement": {"kty": "EC"}, "identity": None}
    server.agents.enroll_by_hand("by-hand", None, "software", keys, NOW)
    assert server.agents.count() == real(server)
    return "by-hand"


def test_a_transaction_that_is_taken_back_counts_nothing(server: ServerSide) -> None:
    made = Device(1).come(server)
    try:
        with server.database.write() as session:
            server.within(session).agents.set_status(made.agent_id, "revoked", NOW)
            session.flush()
            raise ValueError
    except ValueError:
        pass
    assert server.agents.count() == real(server) == {**ZERO, "active": 1}


def test_changes_at_once_are_all_counted_and_none_waits_for_another_for_ever(server: ServerSide) -> None:
    made = [Device(number).come(server).agent_id for number in range(6)]

    def turn(agent: str) -> None:
        for status in ("revoked", "active", "factory_only", "active"):
            server.agents.set_status(agent, status, NOW)

    at_once([lambda agent=agent: turn(agent) for agent in made])
    assert server.agents.count() == real(server) == {**ZERO, "active": 6}


def test_who_changes_agents_by_a_statement_adds_to_the_counts(server: ServerSide) -> None:
    with server.database.write() as session:
        add(session, {"active": 3, "revoked": 0})
    assert server.agents.count() == {**ZERO, "active": 3}
