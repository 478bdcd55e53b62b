"""What the agent learns of its server's capabilities, and when; what a link that withholds, repeats or forges them gains."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentd.sync.capabilities import ASK_EVERY_S, CAPABILITIES
from agentd.uplink.transport import Response
from contracts.contact.capabilities import ANNOUNCE, CAPABILITIES_TYPE
from contracts.exchange import REPLY_TYPE
from server.exchange import capabilities as server_side
from server.keys.rootkey import read_root_key
from server.registry.models.core import Agent
from tests.agentd.test_hostile_replies import Forger
from tests.support.pair import AGENT, Pair, prepare


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Pair]:
    return prepare(tmp_path_factory.mktemp("capabilities"))


@pytest.fixture
def pair(copy: Callable[[Path], Pair], tmp_path: Path) -> Iterator[Pair]:
    made = copy(tmp_path / "pair")
    yield made
    made.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Pair]:
    """An agent that has never heard of a capability, and a server that has not heard of its."""
    made = prepare(tmp_path / "made")(tmp_path / "pair")
    forget(made)
    yield made
    made.close()


def forget(pair: Pair) -> None:
    """As after a first contact with a server of release 0.1.0."""

    store = pair.agent.store
    record = replace(store.record, capabilities=())
    asyncio.run(store.commit(store.ring.contents(record.sections()), record))
    pair.restart_agent()
    with pair.server.server_side.database.write() as session:
        session.get_one(Agent, AGENT).capabilities = None


def contact(pair: Pair) -> None:
    pair.clock.seconds += 1
    assert pair.contact() is None


def known(pair: Pair) -> tuple[str, ...]:
    return pair.agent.cycle.capabilities


def noted(pair: Pair) -> str | None:
    with pair.server.server_side.database.read() as session:
        return session.get_one(Agent, AGENT).capabilities


def test_both_sides_learn_of_each_other_at_the_first_contact(fresh: Pair) -> None:
    assert known(fresh) == () and noted(fresh) is None
    contact(fresh)
    assert known(fresh) == tuple(sorted(CAPABILITIES))
    assert noted(fresh) == " ".join(sorted(CAPABILITIES))
    events = [record for record in fresh.server.server_side.audit.tail(20) if record.event == "agent.capabilities"]
    assert events[-1].fields == {"capabilities": sorted(CAPABILITIES)} and events[-1].actor == f"agent {AGENT}"


def test_it_is_asked_once_a_run_once_a_day_and_with_each_key_set(pair: Pair) -> None:
    def asked(seconds: float = 1) -> tuple[int, int]:
        before = pair.wire.listed, pair.wire.seen.count(ANNOUNCE)
        pair.clock.seconds += seconds
        assert pair.contact() is None
        return pair.wire.listed - before[0], pair.wire.seen.count(ANNOUNCE) - before[1]

    assert asked() == (1, 1)
    assert asked() == (0, 0)
    pair.restart_agent()
    assert (asked(), asked()) == ((1, 1), (0, 0))
    assert asked(ASK_EVERY_S) == (1, 1)
    root = pair.server.directory.parent / "root.key"
    pair.server.server_side.key_lifecycle.rotate("rotation", pair.server.now, read_root_key(root, None))
    assert (asked(), asked()) == ((1, 1), (0, 0))


def test_an_announcement_without_a_change_is_recorded_once(pair: Pair) -> None:
    for _ in range(3):
        contact(pair)
        pair.restart_agent()
    events = [record.event for record in pair.server.server_side.audit.tail(1000)]
    assert events.count("agent.capabilities") == 1


def test_a_server_of_the_last_release_is_one_without_capabilities(fresh: Pair) -> None:
    fresh.wire.capabilities = Response(404, b'{"error":{"code":"bad_request","text":"Not Found"}}')
    for _ in range(3):
        contact(fresh)
    assert known(fresh) == () and ANNOUNCE not in fresh.wire.seen and fresh.wire.listed == 1
    # It is updated, and the agent learns of it without a restart.
    fresh.wire.capabilities = None
    fresh.clock.seconds += ASK_EVERY_S
    contact(fresh)
    assert known(fresh) == tuple(sorted(CAPABILITIES))


def _junk(pair: Pair) -> dict[str, Response]:
    sign = Forger(pair, "", lambda content: content).sign
    good = {"v": 1, "issued_at": pair.server.now, "capabilities": [ANNOUNCE]}
    head, payload, _signature = sign(CAPABILITIES_TYPE, good).split(".")
    return {
        "nothing": Response(200, b""),
        "another page": Response(200, b"<html>log in</html>"),
        "not ASCII": Response(200, b"\xff\xfe"),
        "too much": Response(200, b"A" * 100_000),
        "not signed": Response(200, f"{head}.{payload}.{'A' * 86}".encode()),
        "a reply": Response(200, sign(REPLY_TYPE, good).encode()),
        "unknown members": Response(200, sign(CAPABILITIES_TYPE, {**good, "more": 1}).encode()),
        "names of no form": Response(200, sign(CAPABILITIES_TYPE, {**good, "capabilities": ["A B"]}).encode()),
        "an error": Response(500, b"{}"),
        "busy": Response(429, json.dumps({"error": {"code": "rate_limited", "text": "x"}}).encode(), 900.0),
        "no certificate": Response(401, b"{}"),
        "elsewhere": Response(302, b""),
    }


def test_what_is_no_list_stops_no_contact_and_teaches_nothing(fresh: Pair) -> None:
    for what, answer in _junk(fresh).items():
        fresh.wire.capabilities = answer
        contact(fresh)
        assert known(fresh) == () and ANNOUNCE not in fresh.wire.seen, what
        assert fresh.agent.cycle.record.failures == 0, what
    fresh.wire.capabilities = None
    contact(fresh)  # it is asked again at once: what came before was no answer
    assert known(fresh) == tuple(sorted(CAPABILITIES))


def test_silence_errors_and_old_lists_take_nothing_back(pair: Pair) -> None:
    contact(pair)
    learned = known(pair)
    assert learned
    sign = Forger(pair, "", lambda content: content).sign
    old = sign(CAPABILITIES_TYPE, {"v": 1, "issued_at": 1, "capabilities": []})
    for answer in (Response(200, old.encode()), Response(404, b"{}"), *_junk(pair).values()):
        pair.wire.capabilities = answer
        pair.restart_agent()
        contact(pair)
        assert known(pair) == learned


def test_names_that_this_agent_does_not_know_are_not_kept(fresh: Pair) -> None:
    sign = Forger(fresh, "", lambda content: content).sign
    names = [ANNOUNCE, "of-a-later-release", *(f"name-{number}" for number in range(30))]
    listed = sign(CAPABILITIES_TYPE, {"v": 1, "issued_at": fresh.server.now, "capabilities": names})
    fresh.wire.capabilities = Response(200, listed.encode())
    contact(fresh)
    assert set(known(fresh)) <= set(CAPABILITIES)


@pytest.mark.parametrize("fate", ["request_lost", "reply_lost", "replayed", "duplicated", "delayed"])
def test_an_announcement_that_gets_no_answer_stops_no_contact(fresh: Pair, fate: str) -> None:
    fresh.wire.fate.message = (ANNOUNCE, fate)
    contact(fresh)
    assert fresh.wire.seen.count(ANNOUNCE) == 1
    fresh.restart_agent()
    contact(fresh)
    assert noted(fresh) == " ".join(sorted(CAPABILITIES))


@pytest.mark.parametrize("where", ["before", "acted", "kept"])
def test_a_server_that_stops_at_the_announcement_has_noted_it_or_not(fresh: Pair, where: str) -> None:
    fresh.wire.fate.server_stops = (ANNOUNCE, where)
    contact(fresh)
    assert noted(fresh) == (" ".join(sorted(CAPABILITIES)) if where == "kept" else None)
    fresh.restart_agent()
    contact(fresh)
    assert noted(fresh) == " ".join(sorted(CAPABILITIES))


def test_a_restored_registry_learns_again_with_the_next_start(pair: Pair) -> None:
    contact(pair)
    with pair.server.server_side.database.write() as session:
        session.get_one(Agent, AGENT).capabilities = None
    contact(pair)
    assert noted(pair) is None
    pair.restart_agent()
    contact(pair)
    assert noted(pair) == " ".join(sorted(CAPABILITIES))


def test_both_lists_have_the_names_that_both_use() -> None:
    assert set(CAPABILITIES) == set(server_side.CAPABILITIES)
