"""Whose allowance a request uses: in process, with a steady clock that stands still."""

import asyncio
from typing import Any

import pytest

from server.base.limits import AGENT_RATE
from server.web.middleware import CALLER, NOTE, Middleware
from server.web.peers import Peer


class World:
    """A server whose application answers 401 to certificates that it does not know."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.judges = True
        self.middleware = Middleware(self._app, self._identify, lambda *_: None, wall=lambda: 5.0, steady=lambda: 5.0)

    async def _identify(self, scope: dict[str, Any]) -> tuple[Peer | None, str]:
        return scope["peer"], "192.0.2.1"

    async def _app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        open_to_all = scope.get("path") == "/open"
        status = 200 if open_to_all or scope["extensions"][CALLER].peer.fingerprint in self.known else 401
        scope["extensions"][NOTE].judged = self.judges and not open_to_all
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def ask(self, agent: str, certificate: str, path: str = "/x") -> int:
        """The status of a request with a certificate that names an agent."""
        statuses: list[int] = []
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "peer": Peer(certificate, 0, 9, "1", agent, 1)}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        asyncio.run(self.middleware(scope, receive, send))
        return statuses[0]


@pytest.fixture
def world() -> World:
    return World()


def test_all_certificates_of_an_agent_have_one_allowance(world: World) -> None:
    world.known = {f"{number:064x}" for number in range(101)}
    statuses = [world.ask("pos-1", certificate) for certificate in sorted(world.known)]
    assert statuses == [200] * AGENT_RATE.burst + [429] * (101 - AGENT_RATE.burst)
    assert world.ask("pos-2", "00" * 32) == 200, "another agent has an allowance of its own"


def test_who_has_old_certificates_of_an_agent_does_not_use_up_its_allowance(world: World) -> None:
    world.known = {"aa" * 32}
    old = [f"{number:064x}" for number in range(3)]
    statuses = [world.ask("pos-1", certificate) for certificate in old * 60]
    assert set(statuses) == {401, 429}
    assert [world.ask("pos-1", "aa" * 32) for _ in range(AGENT_RATE.burst - len(old))] == [200] * (AGENT_RATE.burst - len(old))


def test_a_certificate_that_counts_again_uses_its_agents_allowance_again(world: World) -> None:
    assert world.ask("pos-1", "aa" * 32) == 401
    world.known = {"aa" * 32}
    for _ in range(AGENT_RATE.burst):
        assert world.ask("pos-1", "aa" * 32) == 200
    assert world.ask("pos-1", "aa" * 32) == 429


def test_what_nobody_has_judged_uses_up_no_agents_allowance(world: World) -> None:
    """An old certificate gets the key set, or an error about the form of a request: nobody asks whether it counts."""
    world.known, world.judges = {"aa" * 32}, False
    statuses = [world.ask("pos-1", "bb" * 32, path="/open") for _ in range(AGENT_RATE.burst * 2)]
    assert statuses.count(200) == AGENT_RATE.burst and set(statuses) == {200, 429}
    world.judges = True
    assert [world.ask("pos-1", "aa" * 32) for _ in range(AGENT_RATE.burst)] == [200] * AGENT_RATE.burst
    assert world.ask("pos-1", "bb" * 32) == 429


def test_an_old_certificate_does_not_become_a_good_one_by_what_nobody_judges(world: World) -> None:
    world.known = {"aa" * 32}
    for _ in range(10):
        world.judges = True
        assert world.ask("pos-1", "bb" * 32) == 401
        world.judges = False
        assert world.ask("pos-1", "bb" * 32, path="/open") == 200
    world.judges = True
    statuses = [world.ask("pos-1", "aa" * 32) for _ in range(AGENT_RATE.burst)]
    assert statuses.count(200) >= AGENT_RATE.burst - 1  # the first 401 was on the agent's account
