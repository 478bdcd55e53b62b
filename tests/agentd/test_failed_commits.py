"""What a failed commit leaves behind, and one that was reported as failed and was done all the same."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentd.base.alerts import TPM_UNAVAILABLE
from agentd.secrets import trusted_time
from hwsec.backend import BackendStatus
from hwsec.errors import BackendHung, BackendState
from hwsec.store import Contents
from tests.support.pair import DAY, START, Pair, prepare

ACTOR = {"uid": 0}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Pair]:
    return prepare(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def pair(copy: Callable[[Path], Pair], tmp_path: Path) -> Iterator[Pair]:
    made = copy(tmp_path / "pair")
    yield made
    made.close()


def hang_after_next_commit(pair: Pair) -> None:
    """The next commit is done, its caller hears that the hardware hangs, and a new connection reads the store again."""
    agent = pair.agent
    hardware, run = agent.core.hardware, agent.core.hardware.run

    async def hung(work: Callable[[Any], Any], deadline: float) -> Any:
        result = await run(work, deadline)
        if result == agent.store.generation + 1 and isinstance(result, int):
            hardware.run = run  # type: ignore[method-assign]
            assert hardware.on_reload is not None
            hardware.on_reload(await run(lambda connection: connection.store.load(), deadline))
            raise BackendHung("the hardware does not answer")
        return result

    hardware.run = hung  # type: ignore[method-assign, assignment]


def due_for_renewal(pair: Pair) -> None:
    certificates = pair.agent.cycle._certificates
    while not certificates.renewal_due(settled=True):
        pair.clock.seconds += DAY


def test_a_certificate_whose_commit_was_reported_as_failed_is_used_in_the_end(pair: Pair) -> None:
    due_for_renewal(pair)
    assert pair.contact() is None
    certificates = pair.agent.cycle._certificates
    renewed = certificates.pending
    assert renewed is not None
    hang_after_next_commit(pair)
    pair.clock.seconds += 30
    assert isinstance(pair.contact(), BackendHung)
    assert pair.agent.store.record.tls is not None and pair.agent.store.record.tls.pending is None, "the commit was done"
    for _contact in range(2):
        pair.clock.seconds += 60
        assert pair.contact() is None
    assert certificates.current is renewed and certificates.pending is None
    pair.restart_agent()
    pair.clock.seconds += 60
    assert pair.contact() is None
    assert pair.agent.cycle._certificates.current.serial == renewed.serial


def test_a_renewal_whose_commit_was_reported_as_failed_is_asked_for_again(pair: Pair) -> None:
    due_for_renewal(pair)
    hang_after_next_commit(pair)
    before = pair.agent.cycle._certificates.current.serial
    for _contact in range(4):
        pair.contact()
        pair.clock.seconds += 7200
    assert pair.contact() is None
    certificates = pair.agent.cycle._certificates
    assert certificates.current.serial != before and certificates.pending is None
    pair.restart_agent()
    assert pair.contact() is None


def test_a_time_that_could_not_be_committed_is_not_committed_later(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = pair.agent
    earlier = START - 1_000_000
    monkeypatch.setattr(trusted_time, "verify_server_time", lambda *_arguments: earlier)
    time = agent.agent.assembled.time
    challenge = time.challenge()
    known, commit = agent.store.record.time, agent.store.commit

    async def fails(_contents: Contents, _record: Any) -> None:
        raise BackendHung("the hardware does not answer")

    monkeypatch.setattr(agent.store, "commit", fails)
    with pytest.raises(BackendHung):
        asyncio.run(time.reset(challenge, ACTOR))
    monkeypatch.setattr(agent.store, "commit", commit)
    asyncio.run(agent.store.keep("server.revocations", {}))
    assert agent.store.record.time == known
    assert asyncio.run(time.reset(challenge, ACTOR)) == earlier, "the challenge can still be answered"


def test_an_alert_is_raised_whoever_asked_the_hardware_first(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """`license-agent-cli status` asks too, between two looks of the reporter."""
    agent = pair.agent
    well = agent.store.status
    ill = replace(well, available=False, state=BackendState.HUNG, detail="it hangs")
    said: list[BackendStatus] = []
    reporter = agent.agent.reporter

    async def ask(_work: object, _deadline: float) -> BackendStatus:
        return said[-1]

    async def ready(_deadline: float) -> None:
        return None

    monkeypatch.setattr(agent.core.hardware, "ask", ask)
    monkeypatch.setattr(agent.core.hardware, "ready", ready)
    for status, expected in ((well, []), (ill, [TPM_UNAVAILABLE]), (ill, [TPM_UNAVAILABLE]), (well, [])):
        said.append(status)
        asyncio.run(agent.store.refresh_status())
        asyncio.run(reporter.watch_hardware())
        assert [alert for alert in reporter.alerts.raised if alert is TPM_UNAVAILABLE] == expected
