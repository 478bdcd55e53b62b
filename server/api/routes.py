"""Serves what agents ask all the time, in front of the application that declares and documents it. It decides nothing.

A request whose body is plainly of its form goes to the exchange at once, in a thread: a commit waits for the disk. Every other
request goes to the application, which parses it again and says what is wrong. A test compares what the two accept.
"""

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Annotated, Any

import msgspec

from server.base.limits import MAX_BODY_BYTES
from server.exchange.challenges import CHALLENGE_LIFETIME_S
from server.exchange.content import KINDS
from server.exchange.service import RENEWAL, Exchange
from server.web.callers import Scope
from server.web.middleware import CALLER, NOTE, Caller, replay, send_response
from server.web.peers import Peer
from server.web.responses import Response

from .app import PREFIX
from .forms import MIN_JWS_CHARS

CHALLENGE = "challenge"
AT_ONCE = 2
"""Requests of one agent that have threads; an agent asks one after the other."""
_NOTHING = b"{}"
# Not `$`, which in Python's expressions also stands before a line feed at the end.
_JWS = r"\A[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z"


class _Signed(msgspec.Struct, forbid_unknown_fields=True):
    request: Annotated[str, msgspec.Meta(min_length=MIN_JWS_CHARS, max_length=MAX_BODY_BYTES, pattern=_JWS)]


_decoder = msgspec.json.Decoder(_Signed)


def plain_request(body: bytes) -> str | None:
    """The signed request in a body that is plainly of the form of `forms.SignedRequest`; None for every other body."""
    try:
        return _decoder.decode(body).request
    except (msgspec.DecodeError, RecursionError):
        return None


class _Lane:
    """The requests of one agent that are under way."""

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(AT_ONCE)
        self.users = 0


class AgentRoutes:
    """The agents' endpoints. `middleware.Middleware` belongs in front of it.

    Args:
        app: the whole application.
        exchange: answers agents.
        threads: where it does so.
        wall: seconds since 1970 UTC.
    """

    def __init__(self, app: Any, exchange: Exchange, threads: Executor, wall: Callable[[], float] = time.time) -> None:
        self._app = app
        self._exchange = exchange
        self._threads = threads
        self._wall = wall
        self._lanes: dict[str, _Lane] = {}
        self._purposes = {f"{PREFIX}/{purpose}": purpose for purpose in (*KINDS, CHALLENGE)}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Handles one request, or the lifespan."""
        purpose = self._purposes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        peer = None if purpose is None else _peer(scope["extensions"][CALLER], purpose)
        if purpose is None or peer is None:
            await self._app(scope, receive, send)
            return
        body: bytes = (await receive())["body"]
        answer = await self._answer(purpose, peer, body)
        if answer is None:
            await self._app(scope, replay(body), send)
            return
        note = scope["extensions"][NOTE]
        note.code, note.judged = None if answer.code is None else answer.code.value, answer.status != 503
        await send_response(send, answer)

    async def _answer(self, purpose: str, peer: Peer, body: bytes) -> Response | None:
        if purpose == CHALLENGE:
            return await self._in_turn(peer, self._challenge, peer) if body == _NOTHING else None
        text = plain_request(body)
        return None if text is None else await self._in_turn(peer, self._handle, purpose, peer, text)

    async def _in_turn(self, peer: Peer, act: Callable[..., Response], *arguments: object) -> Response:
        """Does it in a thread. An agent's requests wait for each other here: they may wait for a lock, and threads are few."""
        key = peer.agent_id or peer.fingerprint
        lane = self._lanes.setdefault(key, _Lane())
        lane.users += 1
        try:
            async with lane.turns:
                now = int(self._wall())
                return await asyncio.get_running_loop().run_in_executor(self._threads, partial(act, *arguments, now))
        finally:
            lane.users -= 1
            if not lane.users:
                del self._lanes[key]

    def _handle(self, purpose: str, peer: Peer, text: str, now: int) -> Response:
        return self._exchange.handle(purpose, peer, text, now)

    def _challenge(self, peer: Peer, now: int) -> Response:
        found = self._exchange.admit(peer, now)
        return found if isinstance(found, Response) else Challenge(200, challenge=found)


class Challenge(Response):
    """A challenge that was asked for."""

    def body(self) -> str:
        """The JSON body of `forms.ChallengeReply`."""
        return json.dumps({"challenge": self.challenge, "expires_in": CHALLENGE_LIFETIME_S}, separators=(",", ":"))


def _peer(caller: Caller, purpose: str) -> Peer | None:
    """The certificate that counts for a purpose; the application refuses the others."""
    return caller.certificate if purpose in (RENEWAL, CHALLENGE) else caller.peer
