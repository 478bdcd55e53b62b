"""The routes in front of the application: what goes past it is what it would have accepted, and the answer is the same."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.exchange import RefusalCode
from server.api.app import PREFIX, create_app
from server.api.forms import SignedRequest
from server.api.routes import AT_ONCE, AgentRoutes, plain_request
from server.base.limits import MAX_BODY_BYTES
from server.exchange.content import KINDS
from server.exchange.service import RENEWAL
from server.web.middleware import CALLER, NOTE, Caller, Note, replay
from server.web.peers import Peer
from server.web.responses import Response, error
from tests.support.waiting import READY_S

NOW = 1_800_000_000
PEER = Peer("ab" * 32, 0, NOW + 9, "1", "pos-1", 1)
JWS = "e30.e30.AA"


def accepted(body: bytes) -> str | None:
    """What the application takes from a body."""
    try:
        return SignedRequest.model_validate_json(body, strict=True).request
    except ValidationError:
        return None


_parts = st.text("AZaz09-_.\n =é", max_size=12)
_texts = st.one_of(_parts, st.tuples(_parts, _parts, _parts).map(".".join), st.just(JWS), st.just(JWS + "\n"))
_values = st.one_of(_texts, st.none(), st.integers(), st.lists(st.text(max_size=2), max_size=2))
_objects = st.dictionaries(st.sampled_from(["request", "Request", "x"]), _values, max_size=2).map(
    lambda value: json.dumps(value).encode()
)


@given(st.one_of(_objects, _objects.map(lambda body: b"\xef\xbb\xbf" + body), st.binary(max_size=20)))
def test_nothing_is_plain_that_the_application_refuses(body: bytes) -> None:
    plain = plain_request(body)
    assert plain is None or plain == accepted(body)


@pytest.mark.parametrize("size", [4, 5, MAX_BODY_BYTES, MAX_BODY_BYTES + 1])
def test_a_well_formed_request_is_plain(size: int) -> None:
    text = "a.b." + "c" * (size - 4)
    body = json.dumps({"request": text}).encode()
    assert plain_request(body) == accepted(body) == (text if 5 <= size <= MAX_BODY_BYTES else None)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"request":' * 50_000, b'{"request":"a.b.c","request":"d.e.f"}'])
def test_odd_bodies_end_nothing(body: bytes) -> None:
    plain = plain_request(body)
    assert plain is None or plain == accepted(body)


class Exchange:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answer = Response(200, JWS)

    def handle(self, purpose: str, peer: Peer, text: str, now: int) -> Response:
        self.asked.append((purpose, peer.fingerprint, text, now))
        return self.answer

    def admit(self, peer: Peer, now: int) -> Response | str:
        self.asked.append(("challenge", peer.fingerprint, now))
        return "A" * 64 if self.answer.code is None else self.answer


class World:
    """The application with its routes, and the application alone."""

    def __init__(self) -> None:
        self.exchange = Exchange()
        self.app = create_app(self.exchange, None, None, wall=lambda: NOW)  # type: ignore[arg-type]
        self.threads = ThreadPoolExecutor(1)
        self.routes = AgentRoutes(self.app, self.exchange, self.threads, lambda: NOW)  # type: ignore[arg-type]

    def ask(self, app: Any, path: str, body: bytes, caller: Caller, method: str = "POST") -> tuple[Any, ...]:
        sent: list[dict[str, Any]] = []
        note = Note()
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "https",
            "server": ("h", 1), "client": ("127.0.0.1", 2), "extensions": {CALLER: caller, NOTE: note},
        }  # fmt: skip

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(app(scope, replay(body), send))
        headers = {name.lower(): value for name, value in sent[0]["headers"]}
        return sent[0]["status"], headers, b"".join(each.get("body", b"") for each in sent[1:]), note.code


@pytest.fixture
def world() -> Any:
    made = World()
    yield made
    made.threads.shutdown()


PATHS = [f"{PREFIX}/{name}" for name in (*KINDS, "challenge", "key-set", "nothing")]
CALLERS = {
    "agent": Caller(PEER, "a", PEER),
    "outside its dates": Caller(None, "a", PEER),
    "nobody": Caller(None, "a", None),
}
BODIES = [json.dumps({"request": JWS}).encode(), b"{}", b" {} ", b'{"request":"x"}', b"", b"\xff", b'{"request":"a.b.c","x":1}']


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
@pytest.mark.parametrize(
    "answer",
    [Response(200, JWS), error(401, RefusalCode.UNKNOWN_AGENT, "no"), Response(429, JWS, RefusalCode.RATE_LIMITED, "x", 7)],
    ids=["reply", "error", "refusal"],
)
def test_routes_and_application_answer_alike(world: World, caller: Caller, answer: Response) -> None:
    world.exchange.answer = answer
    for path in PATHS:
        if path.endswith("key-set"):
            continue  # needs keys
        for method in ("POST", "GET", "PUT"):
            for body in BODIES:
                alone = world.ask(world.app, path, body, caller, method), world.exchange.asked[:]
                world.exchange.asked.clear()
                both = world.ask(world.routes, path, body, caller, method), world.exchange.asked[:]
                world.exchange.asked.clear()
                assert both == alone, (path, method, body)


def test_what_is_asked_all_the_time_does_not_reach_the_application(world: World) -> None:
    async def unused(*_arguments: Any) -> None:
        raise AssertionError

    routes = AgentRoutes(unused, world.exchange, world.threads, lambda: NOW)  # type: ignore[arg-type]
    for name in KINDS:
        assert world.ask(routes, f"{PREFIX}/{name}", BODIES[0], CALLERS["agent"])[0] == 200
    assert world.ask(routes, f"{PREFIX}/{RENEWAL}", BODIES[0], CALLERS["outside its dates"])[0] == 200
    assert world.ask(routes, f"{PREFIX}/challenge", b"{}", CALLERS["outside its dates"])[0] == 200
    assert len(world.exchange.asked) == len(KINDS) + 2


def test_the_document_has_the_routes() -> None:
    document = create_app(None, None, None).openapi()  # type: ignore[arg-type]
    for name in (*KINDS, "challenge"):
        assert "post" in document["paths"][f"{PREFIX}/{name}"]


def test_an_agent_whose_requests_wait_leaves_threads_to_others() -> None:
    """A row that somebody else has locked: all requests of that agent wait, and those of other agents do not."""
    world = World()
    world.threads = ThreadPoolExecutor(AT_ONCE + 1)
    free, answered = threading.Event(), []

    def handle(purpose: str, peer: Peer, text: str, now: int) -> Response:
        if peer.agent_id == "pos-1":
            assert free.wait(READY_S)
        answered.append(peer.agent_id)
        return Response(200, JWS)

    world.exchange.handle = handle  # type: ignore[method-assign]
    routes = AgentRoutes(world.app, world.exchange, world.threads, lambda: NOW)  # type: ignore[arg-type]
    other = Peer("cd" * 32, 0, NOW + 9, "2", "pos-2", 2)

    async def ask(peer: Peer) -> None:
        extensions = {CALLER: Caller(peer, "a", peer), NOTE: Note()}
        scope = {"type": "http", "method": "POST", "path": PATHS[0], "extensions": extensions}

        async def send(_message: dict[str, Any]) -> None:
            pass

        await routes(scope, replay(BODIES[0]), send)

    async def scenario() -> None:
        waiting = [asyncio.create_task(ask(PEER)) for _ in range(10)]
        await asyncio.sleep(0)
        await asyncio.wait_for(ask(other), READY_S)
        assert answered == ["pos-2"]
        free.set()
        await asyncio.gather(*waiting)

    asyncio.run(scenario())
    assert sorted(answered) == ["pos-1"] * 10 + ["pos-2"]
    assert routes._lanes == {}
    world.threads.shutdown()
