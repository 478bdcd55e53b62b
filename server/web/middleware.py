"""Admits requests before the application sees them: identifies the caller, limits its rate, bounds the body. ASGI middleware.

It reads the body, whole and bounded, and hands it to the application from memory.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio.to_thread

from contracts.exchange import RefusalCode
from server.base.jsonlog import place_of
from server.base.limits import (
    ADDRESS_RATE,
    AGENT_RATE,
    LOT_ASKED_RATE,
    MAX_BODY_BYTES,
    MAX_KEYS,
    Rate,
    address_key,
    buckets,
)

from .bodies import BodyRefused, whole_body
from .callers import CannotIdentify, Identify, Scope, address_of
from .clientchain import NotOurs
from .peers import Peer
from .responses import CLOCK_RETRY_S, DATABASE_DOWN, Response, error

CALLER = "license_server.caller"
"""In `scope["extensions"]`: the `Caller`."""
NOTE = "license_server.note"
"""In `scope["extensions"]`: the `Note`."""
_JSON = b"application/json"
_log = logging.getLogger("license_server")


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request.

    Attributes:
        peer: its client certificate; None if it has none, or one outside its dates.
        address: its address; empty if unknown.
        certificate: its client certificate, if its dates count or not; None if it has none that verifies.
    """

    peer: Peer | None
    address: str
    certificate: Peer | None = None

    @property
    def outside(self) -> Peer | None:
        """Its client certificate, if that is outside its dates: it can be renewed, and nothing else."""
        return self.certificate if self.peer is None else None


@dataclass(slots=True)
class Note:
    """What the application notes of its response, for metrics, limits and log.

    Attributes:
        code: of a refusal; None for a success.
        judged: whether the registry was asked for the client certificate.
    """

    code: str | None = None
    judged: bool = False


@dataclass(frozen=True, slots=True)
class Lots:
    """The allowance of agents, where it is shared with other processes.

    Attributes:
        rate: what this process lets an agent ask by itself; its burst is one lot.
        take: takes another lot of an agent's allowance at a time in seconds since 1970 UTC; called in a thread.
    """

    rate: Rate
    take: Callable[[str, int], bool]


Observe = Callable[[Scope, Note, int, float], None]
"""Called after each response with scope, note, HTTP status and seconds."""


class Middleware:
    """Passes to the application only requests of identified callers, within their rates, with whole bodies.

    Args:
        app: the application.
        identify: `callers.from_tls`, or a `callers.FromProxy`.
        observe: called after each response.
        wall: seconds since 1970 UTC.
        steady: seconds of a clock that never goes back.
        clock_trusted: whether the server's clock is trusted, as far as that is known without waiting.
        clock_problem: asked where it is not: why nothing must be signed; None if it may after all. Runs in a thread.
        undated: paths that are served all the same, because their responses have nothing to do with the time.
        lots: the agents' allowance is shared with other processes; None if this process is the only one.
    """

    def __init__(
        self,
        app: Any,
        identify: Identify,
        observe: Observe,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        clock_trusted: Callable[[], bool] = lambda: True,
        clock_problem: Callable[[], str | None] = lambda: None,
        undated: frozenset[str] = frozenset(),
        lots: Lots | None = None,
    ) -> None:
        self._app = app
        self._clock_trusted = clock_trusted
        self._clock_problem = clock_problem
        self._undated = undated
        self._identify = identify
        self._observe = observe
        self._wall = wall
        self._steady = steady
        self._lots = lots
        self._agents = buckets(AGENT_RATE if lots is None else lots.rate)
        self._asked = buckets(LOT_ASKED_RATE)
        self._addresses = buckets(ADDRESS_RATE)
        self._unknown: dict[str, None] = {}
        self._unjudged = buckets(AGENT_RATE)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Handles one request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, started, note = self._steady(), 500, False, Note()
        scope["extensions"] = {**scope.get("extensions", {}), NOTE: note}

        async def noting(message: dict[str, Any]) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message.get("headers", []), (b"cache-control", b"no-store")]
                if _ends(scope["extensions"].get(CALLER), status):
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            refused = await self._admit(scope, receive)
            if isinstance(refused, Response):
                note.code = None if refused.code is None else refused.code.value
                await send_response(noting, refused)
            else:
                await self._app(scope, replay(refused), noting)
        except Exception as problem:  # noqa: BLE001 - whatever the application did not foresee ends here
            _log.error("a request failed", extra={"fields": {"kind": type(problem).__name__, "at": place_of(problem)}})
            if not started:
                await send_response(noting, error(500, RefusalCode.UNAVAILABLE, "internal error; the server's log says where"))
        finally:
            self._note_known(scope["extensions"].get(CALLER), status, note)
            self._observe(scope, note, status, self._steady() - began)

    async def _admit(self, scope: Scope, receive: Any) -> Response | bytes:
        """The body, or the response that refuses the request."""
        # Before the certificate's dates are looked at: a wrong clock would find all of them ended.
        if not self._clock_trusted() and scope["path"] not in self._undated:
            problem = await anyio.to_thread.run_sync(self._clock_problem)
            if problem is not None:
                return error(503, RefusalCode.UNAVAILABLE, problem, CLOCK_RETRY_S)
        refused: Response | None = None
        certificate: Peer | None = None
        try:
            certificate, address = await self._identify(scope)
        except NotOurs:
            refused = error(401, RefusalCode.UNKNOWN_AGENT, "the client certificate was not issued by this server")
        except CannotIdentify:
            refused = DATABASE_DOWN
        except ValueError:
            refused = error(400, RefusalCode.BAD_REQUEST, "the client certificate cannot be read")
        if refused is not None:
            address = address_of(scope)
        valid = certificate is not None and certificate.valid_at(int(self._wall()))
        caller = Caller(certificate if valid else None, address, certificate)
        scope["extensions"][CALLER] = caller
        now = self._steady()
        if caller.peer is None:
            limit, key = self._addresses, address_key(address)
        else:
            limit, key = self._agents, self._bucket_of(caller.peer)
        if caller.peer is not None and self._unjudged.wait(caller.peer.fingerprint, now):
            wait = self._unjudged.wait(caller.peer.fingerprint, now)
            return error(429, RefusalCode.RATE_LIMITED, f"too many requests; try again in {wait} s", wait)
        if not limit.take(key, now) and not (limit is self._agents and await self._take_lot(key, now)):
            wait = limit.wait(key, now)
            return error(429, RefusalCode.RATE_LIMITED, f"too many requests; try again in {wait} s", wait)
        if refused is not None:
            return refused
        if scope["method"] == "POST" and not is_json(scope["headers"]):
            return error(415, RefusalCode.BAD_REQUEST, "the content-type must be application/json")
        return await _body(scope, receive)

    async def _take_lot(self, key: str, now: float) -> bool:
        """Whether an agent that has used up what this process lets it ask gets a lot of the allowance that all share."""
        if self._lots is None or not self._asked.take(key, now):
            return False
        if not await anyio.to_thread.run_sync(self._lots.take, key, int(self._wall())):
            return False
        self._agents.give(key, self._lots.rate.burst, now)
        return self._agents.take(key, now)

    def _bucket_of(self, peer: Peer) -> str:
        """One for each agent, whatever certificate it shows; our CA vouches for the name.

        Certificates that the application has answered with 401 share another one: who has an old certificate of an agent cannot
        use up what the agent may ask.
        """
        agent = peer.agent_id or peer.fingerprint
        return f"unknown {agent}" if peer.fingerprint in self._unknown else f"agent {agent}"

    def _note_known(self, caller: Caller | None, status: int, note: Note) -> None:
        if caller is None or caller.peer is None or status == 429:
            return
        peer = caller.peer
        if status == 401:
            self._unknown[peer.fingerprint] = None
            if len(self._unknown) > MAX_KEYS:
                del self._unknown[next(iter(self._unknown))]
        elif note.judged:
            self._unknown.pop(peer.fingerprint, None)
        else:
            # Nobody has looked whether the certificate still counts, so it was not the agent who asked.
            now = self._steady()
            self._agents.give(self._bucket_of(peer), 1, now)
            self._unjudged.take(peer.fingerprint, now)


def _ends(caller: Caller | None, status: int) -> bool:
    """Whether the connection ends with this response."""
    if status in (408, 413):
        return True  # the rest of the body is not read
    # Nobody is worth a connection that waits. An agent is: another handshake would cost more.
    return status in (400, 401, 429) and (caller is None or caller.peer is None)


def is_json(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request says, once, that its body is JSON."""
    values = [value for name, value in headers if name == b"content-type"]
    if len(values) != 1:
        return False
    kind, _, parameter = values[0].lower().partition(b";")
    return kind.strip() == _JSON and parameter.strip() in (b"", b"charset=utf-8", b'charset="utf-8"')


async def _body(scope: Scope, receive: Any) -> Response | bytes:
    try:
        return await whole_body(scope, receive, MAX_BODY_BYTES)
    except BodyRefused as refused:
        return error(refused.status, RefusalCode.BAD_REQUEST, refused.text)


def replay(body: bytes) -> Callable[[], Any]:
    """Gives an application a body that has been read already."""
    done = False

    async def receive() -> dict[str, Any]:
        nonlocal done
        if done:
            return {"type": "http.disconnect"}
        done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def send_response(send: Any, answer: Response) -> None:
    """Sends a response to an ASGI server."""
    body = answer.body().encode()
    headers = [(b"content-type", _JSON), (b"content-length", str(len(body)).encode())]
    if answer.retry_after_s is not None:
        headers.append((b"retry-after", str(answer.retry_after_s).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
