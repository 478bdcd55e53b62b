"""A rotation is disturbed at every step, by SIGKILL on either side and by every fate of a message: both sides agree afterwards.

A till validates all the time, with the token that it had when the case began and with the newest one. It is never refused.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.exchange.kept_replies import MADE_AGAIN
from tests.support.background import in_background
from tests.support.chain import Chain, Till, running_chain
from tests.support.hostilelink import Asked, Behavior, Failure, Gate, Reply, Said, once
from tests.support.relay import Cut, Turn
from tests.support.rotationcases import AGENT_STEPS, PURPOSES


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with running_chain() as made:
        made.first_token = made.issue("till-1")
        yield made


@pytest.fixture
def till(chain: Chain, tmp_path: Path) -> Iterator[Till]:
    """Works for the length of the test."""
    with _till(chain, tmp_path) as working:
        yield working


@contextlib.contextmanager
def _till(chain: Chain, directory: Path) -> Iterator[Till]:
    chain.let_old_versions_end()
    till = Till(chain, chain.first_token, directory / "token")
    with till.working():
        chain.wait_until(lambda: till.rounds > 0)
        yield till
    chain.first_token = till.kept


def rotated_once(chain: Chain, till: Till, before: int) -> None:
    """One new version, the same on both sides, and the till has its license under it."""
    chain.settle()
    assert chain.newest() == before + 1
    with chain.server_side() as server_side:
        rows = server_side.secrets.listed(chain.agent_id)
    assert [row.version for row in rows] == list(range(1, before + 2)), "the server has made a secret that nobody needed"
    assert not [row for row in rows if row.state in ("DIVERGED", "PENDING")], rows
    rounds = till.rounds
    chain.wait_until(lambda: till.rounds > rounds + 1)
    assert chain.admin("license_check", token=till.kept)["secret_version"] == before + 1
    # What is logged after a step may be lost with the process; what is logged before it is not.
    begun = [record["secret_version"] for record in chain.records("secret.install") if record["outcome"] == "begun"]
    assert begun[-1] == before + 1


@pytest.mark.parametrize("step", AGENT_STEPS)
def test_the_agent_is_killed_at_each_step(chain: Chain, till: Till, step: str) -> None:
    before = chain.newest()
    chain.agent_dies_at(step)
    assert "closed the connection" in chain.asks("rotate")
    chain.restart_dead_agent()
    rotated_once(chain, till, before)


def test_a_rotation_asked_for_after_a_kill_brings_a_new_secret_and_says_what_it_did(chain: Chain, till: Till) -> None:
    before = chain.newest()
    chain.agent_dies_at("sealed")
    assert "closed the connection" in chain.asks("rotate")
    chain.restart_dead_agent()
    chain.wait_until(lambda: chain.newest() == before + 1)
    said = chain.cli("rotate")
    assert f"secret version {before + 2} is ACTIVE on both sides (before: {before + 1})" in said
    if not said.endswith(f"(before: {before + 1})\n"):  # else the agent has finished it by itself before
        assert f"an earlier rotation, to version {before + 1}, had been interrupted and was finished first" in said
    rotated_once(chain, till, before + 1)


@pytest.mark.parametrize("acted", [False, True], ids=["before it acts", "before its answer arrives"])
@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_server_is_killed_at_each_request(chain: Chain, till: Till, purpose: str, acted: bool) -> None:
    before, gate = chain.newest(), Gate()

    def cut(turn: Turn) -> None:
        if turn.side == "server":
            gate.wait()
            raise Cut

    def behave(asked: Asked) -> Said:
        if acted:
            chain.relay.rule = cut
        else:
            gate.wait()
        return asked.forward()

    with chain.bad.behaving(once(purpose, behave)):
        with in_background(lambda: chain.rotate_fails()), gate.held():
            chain.kill_server()
        chain.relay.rule = None
    chain.start_server()
    rotated_once(chain, till, before)


def lost_request(_chain: Chain) -> Behavior:
    return lambda _asked: Failure()


def lost_answer(_chain: Chain) -> Behavior:
    def behave(asked: Asked) -> Said:
        assert isinstance(asked.forward(), Reply)
        return None

    return behave


def duplicated(_chain: Chain) -> Behavior:
    def behave(asked: Asked) -> Said:
        first = asked.forward()
        again = asked.forward()
        # The server acts once on a request, however often it comes; what changes nothing it answers again.
        assert isinstance(first, Reply) and isinstance(again, Reply) and first.status == again.status == 200
        assert first.body == again.body or asked.purpose in MADE_AGAIN
        return again

    return behave


def delayed(chain: Chain) -> Behavior:
    def behave(asked: Asked) -> Said:
        answer = asked.forward()
        chain.wait_until(lambda: chain.mode() == "online")
        time.sleep(0.3)
        return answer

    return behave


def replayed(chain: Chain) -> Behavior:
    def behave(asked: Asked) -> Said:
        asked.forward()
        return chain.bad.of(asked.purpose)[-2].said

    return behave


FATES: dict[str, tuple[Callable[[Chain], Behavior], bool]] = {
    "the request is lost": (lost_request, False),
    "the answer is lost": (lost_answer, False),
    "it is duplicated": (duplicated, True),
    "it is delayed": (delayed, True),
    "an old answer is replayed": (replayed, False),
}
"""What happens to a message, and whether the rotation comes to its end all the same."""


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("purpose", PURPOSES)
def test_each_fate_of_each_message(chain: Chain, till: Till, purpose: str, fate: str) -> None:
    before = chain.newest()
    make, comes_through = FATES[fate]
    with chain.bad.behaving(once(purpose, make(chain))):
        told = chain.asks("rotate")
    assert (told == "") == comes_through, told
    rotated_once(chain, till, before)


def test_the_connection_is_cut_before_each_request(chain: Chain, till: Till) -> None:
    """Below TLS nobody knows what is said; whatever request it is that is lost, the next contact goes on."""

    def cut() -> None:
        raise Cut

    for request in range(1, 5):
        before = chain.newest()
        chain.relay.once("client", request + 1, cut)
        told = chain.asks("rotate")
        chain.relay.rule = None
        assert told
        chain.settle()
        assert chain.newest() in (before, before + 1)
    before = chain.newest()
    chain.admin("rotate")
    rotated_once(chain, till, before)


@pytest.mark.slow
def test_on_a_tpm_as_well(tmp_path: Path) -> None:
    with running_chain(tpm=True) as chain:
        chain.first_token = chain.issue("till-1")
        for step in ("delivered", "sealed", "confirmed"):
            with _till(chain, tmp_path) as till:
                before = chain.newest()
                chain.agent_dies_at(step)
                assert chain.asks("rotate")
                chain.restart_dead_agent()
                rotated_once(chain, till, before)
