"""Rotation, with everything that can go wrong in it: agent stopped × server stopped × message lost.

Every case is one rotation of the same pair, in a row, so that each begins where the one before has left both. Of each it is
shown: no license that is valid is ever refused, both sides end with the same secret and exactly one ACTIVE, and the new tokens
are there.
"""

import asyncio
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.rotation.table import Step
from agentd.secrets.lifecycle import State
from agentd.sync.cycle import Contacted
from agentd.uplink.transport import NoContact
from contracts.exchange import Cause
from contracts.keyconfirmation import key_check
from tests.support.folders import memory_folder
from tests.support.pair import AGENT, DAY, LICENSE, Fate, Pair, prepare
from tests.support.rotationcases import AGENT_STEPS, PURPOSES

INTERVAL, GRACE = 600, 6000
SERVER_STEPS = ("before", "acted", "kept")
MESSAGE_FATES = ("request_lost", "reply_lost", "duplicated", "delayed", "replayed")

SERVER = (None, *itertools.product(PURPOSES, SERVER_STEPS))
MESSAGES = (None, *itertools.product(PURPOSES, MESSAGE_FATES))
EVERY = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 9
"""Of the cases in which both the server is stopped and a message suffers, every ninth, each of them once for one of the agent's
steps; all 1,600 with scripts/soak."""


def cases(shift: int) -> list[tuple[tuple[str, str] | None, tuple[str, str] | None]]:
    """What happens to the server and to a message; another choice for each agent's step, so that all pairs are there."""
    pairs = itertools.product(SERVER, MESSAGES)
    both = (None not in pair for pair in itertools.product(SERVER, MESSAGES))
    kept = itertools.cycle(number == shift % EVERY for number in range(EVERY))
    return [pair for pair, double in zip(pairs, both, strict=True) if not double or next(kept)]


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """What is tested here is order, not the disk."""
    with memory_folder() as directory:
        yield directory


@pytest.fixture(scope="module")
def pair(memory: Path) -> Iterator[Pair]:
    made = prepare(memory, INTERVAL, GRACE)(memory / "pair")
    yield made
    made.close()


def active(pair: Pair) -> tuple[list[int], list[int]]:
    """The ACTIVE versions of the agent, and of the server."""
    ring, now = pair.agent.ring, pair.clock.now()
    ours = [stored.meta.version for stored in ring.versions if ring.state_of(stored, now) is State.ACTIVE]
    theirs = [row.version for row in pair.server.server_side.secrets.listed(AGENT) if row.state == "ACTIVE"]
    return ours, theirs


def rotate(pair: Pair, fate: Fate) -> None:
    """One rotation under a fate, until both sides have settled."""
    before, token = pair.agent.rotation.newest, pair.token
    pair.wire.fate = fate
    pair.clock.seconds += 1000
    # Licenses are looked at after every contact, whatever became of it.
    for attempt in range(6):
        pair.clock.seconds += 1
        error = pair.contact(Cause.FORCED if attempt == 0 else None)
        assert pair.valid(token), f"a valid license was refused after {error!r}"
        if error is None and pair.agent.rotation.rotation.step is Step.IDLE and pair.agent.rotation.newest > before:
            break
    else:
        raise AssertionError(f"not settled: {pair.agent.rotation.rotation}, {error!r}")
    assert pair.agent.rotation.newest > before
    ours, theirs = active(pair)
    assert len(ours) == 1 and ours == theirs, (ours, theirs)
    newest = pair.agent.ring.newest
    assert newest is not None and newest.secret is not None
    check = {row.version: row.key_check for row in pair.server.server_side.secrets.listed(AGENT)}
    with pair.agent.core.vault.open(newest.secret) as secret:
        assert check[ours[0]] == key_check(secret.view, AGENT, ours[0])
    renewed = pair.agent.validator.refreshed_token(token, pair.clock.now())
    assert renewed is not None and pair.valid(renewed), "no new token"
    pair.token = renewed


@pytest.mark.parametrize("agent_stops", [None, *AGENT_STEPS], ids=lambda step: step or "runs")
def test_whatever_happens_both_sides_agree_and_no_license_is_refused(pair: Pair, agent_stops: str | None) -> None:
    stops = pair.stops
    chosen = cases(0 if agent_stops is None else AGENT_STEPS.index(agent_stops) + 1)
    for server_stops, message in chosen:
        case = f"server {server_stops}, message {message}"
        try:
            rotate(pair, Fate(agent_stops, server_stops, message))
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error
    # The stop is not one that never came: in nearly every case the step was reached.
    assert pair.stops - stops >= (0 if agent_stops is None else len(chosen) * 0.9)


def test_the_choice_leaves_no_pair_out() -> None:
    every = set(itertools.product(SERVER, MESSAGES))
    assert set().union(*(cases(shift) for shift in range(len(AGENT_STEPS) + 1))) == every
    assert all({(None, message) for message in MESSAGES} <= set(cases(shift)) for shift in range(4))
    assert all({(server, None) for server in SERVER} <= set(cases(shift)) for shift in range(4))


@pytest.mark.parametrize("step", AGENT_STEPS)
def test_an_administrator_who_asks_gets_a_new_secret_also_after_a_kill(memory: Path, step: str) -> None:
    """A rotation that a kill cut is finished first; what is sealed here already is not the secret that was asked for."""
    directory = memory / f"cut-{step.replace(' ', '')}"
    pair = prepare(directory, INTERVAL, GRACE)(directory / "pair")
    pair.wire.fate = Fate(agent_stops=step)
    assert pair.contact(Cause.FORCED) is not None
    assert pair.stops == 1
    before, sealed = pair.agent.rotation.newest, pair.agent.rotation.rotation.step not in (Step.IDLE, Step.REQUESTED)
    pair.clock.seconds += 1
    done = asyncio.run(pair.agent.cycle.contact(Cause.FORCED))
    assert done == Contacted(before, before if sealed else 0)
    assert pair.agent.rotation.newest == before + 1
    assert active(pair) == ([before + 1], [before + 1])
    assert pair.valid()
    pair.close()


@pytest.mark.parametrize("step", AGENT_STEPS)
def test_an_operator_who_demands_a_rotation_gets_a_new_secret_also_after_a_kill(memory: Path, step: str) -> None:
    """`license-server secrets rotate`: what was made before it does not count, whether the agent has sealed it or not."""
    directory = memory / f"demand-{step.replace(' ', '')}"
    pair = prepare(directory, INTERVAL, GRACE)(directory / "pair")
    pair.wire.fate = Fate(agent_stops=step)
    assert pair.contact(Cause.FORCED) is not None
    made = max(row.version for row in pair.server.server_side.secrets.listed(AGENT))
    pair.server.server_side.secrets.demand(AGENT, pair.server.now)
    pair.clock.seconds += 1
    assert pair.contact() is None
    newest = pair.agent.rotation.newest
    assert newest == made + 1
    assert active(pair) == ([newest], [newest])
    assert pair.valid()
    pair.clock.seconds += 1
    assert pair.contact() is None
    assert pair.agent.rotation.newest == newest
    pair.close()


def test_a_contact_that_nobody_forced_makes_no_secret_that_nobody_needs(memory: Path) -> None:
    pair = prepare(memory / "unforced", INTERVAL, GRACE)(memory / "unforced-pair")
    pair.wire.fate = Fate(agent_stops="sealed")
    assert pair.contact(Cause.FORCED) is not None
    assert asyncio.run(pair.agent.cycle.contact()) == Contacted(2, 2)
    assert asyncio.run(pair.agent.cycle.contact()) == Contacted(2, 0)
    assert active(pair) == ([2], [2])
    pair.close()


def test_a_server_restored_from_an_old_backup_skips_ahead(memory: Path) -> None:
    pair = prepare(memory / "restored", INTERVAL, GRACE)(memory / "restored-pair")
    server_side = memory / "restored-pair" / "server"
    copy = memory / "backup"
    pair.server.server_side.close()
    shutil.copytree(server_side, copy)
    pair.server.start()
    for _ in range(3):
        pair.clock.seconds += 1000
        assert pair.contact(Cause.FORCED) is None
    assert active(pair) == ([4], [4])
    token = pair.agent.validator.refreshed_token(pair.token, pair.clock.now())
    assert token is not None
    pair.server.server_side.close()
    shutil.rmtree(server_side)
    shutil.copytree(copy, server_side)
    pair.server.start()
    assert active(pair) == ([4], [1])
    pair.until_settled()
    assert active(pair) == ([5], [5])
    assert pair.valid(token) and pair.valid(pair.agent.validator.refreshed_token(token, pair.clock.now()) or "")
    pair.close()


def test_a_week_without_a_server_costs_no_license_and_the_way_back_is_one_contact(memory: Path) -> None:
    pair = prepare(memory / "week", DAY, 7 * DAY)(memory / "week-pair")
    pair.wire.cut = True
    for _day in range(7):
        pair.clock.seconds += DAY
        assert isinstance(pair.contact(), NoContact)
        assert pair.valid()
    pair.restart_agent()
    assert pair.valid(), "an offline cold start must work"
    pair.clock.seconds += DAY
    assert not pair.valid()
    pair.wire.cut = False
    assert pair.contact() is None
    token = pair.agent.validator.refreshed_token(pair.token, pair.clock.now())
    assert token is not None and pair.valid(token), "the till gets a new token for one whose secret has died"
    pair.close()


def test_the_same_pending_version_is_handed_out_until_it_is_confirmed(memory: Path) -> None:
    pair = prepare(memory / "pending", INTERVAL, GRACE)(memory / "pending-pair")
    for _ in range(3):
        pair.wire.fate = Fate(message=("rotate-secret", "reply_lost"))
        assert isinstance(pair.contact(Cause.FORCED), NoContact)
    states = {row.version: row.state for row in pair.server.server_side.secrets.listed(AGENT)}
    assert states == {1: "ACTIVE", 2: "PENDING"}
    pair.until_settled()
    assert active(pair) == ([2], [2])
    pair.close()


def test_secrets_that_differ_under_one_number_are_found_and_replaced(memory: Path) -> None:
    pair = prepare(memory / "differ", INTERVAL, GRACE)(memory / "differ-pair")
    backup = memory / "differ-backup"
    pair.server.server_side.close()
    shutil.copytree(memory / "differ-pair" / "server", backup)
    pair.server.start()
    pair.clock.seconds += 10
    assert pair.contact(Cause.FORCED) is None
    pair.server.server_side.close()
    shutil.rmtree(memory / "differ-pair" / "server")
    shutil.copytree(backup, memory / "differ-pair" / "server")
    pair.server.start()
    # The restored server makes a version 2 of its own, by an administrator's hand: not the one that the agent has.
    pair.server.server_side.secrets.rotate_by_hand(AGENT, pair.server.now)
    pair.until_settled()
    states = {row.version: row.state for row in pair.server.server_side.secrets.listed(AGENT)}
    assert states == {1: "GRACE", 2: "DIVERGED", 3: "ACTIVE"}
    assert active(pair) == ([3], [3])
    pair.close()


def test_a_license_of_a_revoked_agent_is_not_renewed_and_the_agent_says_so(memory: Path) -> None:
    pair = prepare(memory / "revoked", INTERVAL, GRACE)(memory / "revoked-pair")
    pair.server.server_side.agents.set_status(AGENT, "revoked", pair.server.now)
    error = pair.contact(Cause.FORCED)
    assert "revoked" in str(error) and pair.agent.cycle.record.refused is not None
    assert pair.agent.rotation.newest == 1 and pair.valid()
    pair.close()


def test_a_revoked_license_is_refused_after_the_next_contact_and_after_a_restart(memory: Path) -> None:
    pair = prepare(memory / "license", INTERVAL, GRACE)(memory / "license-pair")
    pair.server.server_side.licenses.revoke(LICENSE, pair.server.now)
    assert pair.valid()
    assert pair.contact() is None
    assert not pair.valid()
    pair.close()
