"""Speaks HTTP/1.1 on one TLS connection: h11 parses, only requests with one reading get through, and everything is bounded."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import h11

from common.stricthttp import StrictConnection

from . import problems as p
from .app import Caller, Request, Response, problem_response
from .problems import Problem

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 96 * 1024
"""More than the largest act that the agent takes has in JSON, with its certificates."""
_READ_BYTES = 16 * 1024

Handle = Callable[[Request, Caller], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Times:
    """How long things may take, in seconds.

    Attributes:
        idle: between two requests of a connection.
        request: from a request's first byte to its last.
        send: until the peer has taken an answer.
        linger: for the rest of a body that is too large.
        life: of a connection. A certificate is checked in the handshake, so none outlives its end by more than this.
    """

    idle: float = 30.0
    request: float = 10.0
    send: float = 10.0
    linger: float = 1.0
    life: float = 900.0


class Session:
    """One connection of a client that the handshake has let in.

    Args:
        reader: what comes.
        writer: what goes.
        caller: whose connection it is.
        handle: answers a request.
        times: bounds.
        monotonic: seconds.
        wall: seconds since 1970 UTC, for the header Date.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        caller: Caller,
        handle: Handle,
        times: Times,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._reader, self._writer = reader, writer
        self._caller, self._handle = caller, handle
        self._times, self._monotonic, self._wall = times, monotonic, wall
        self._ends = monotonic() + times.life
        self._http = StrictConnection(h11.SERVER, MAX_HEAD_BYTES)

    async def run(self) -> None:
        """Answers requests until one of the two ends the connection."""
        with contextlib.suppress(OSError, EOFError, TimeoutError, h11.LocalProtocolError):
            while await self._one():
                self._http.start_next_cycle()

    async def _one(self) -> bool:
        """Answers one request; returns whether another one may follow."""
        if not self._http.trailing_data[0]:
            async with asyncio.timeout(self._times.idle):
                if not await self._feed():
                    return False
        head = malformed = False
        try:
            async with asyncio.timeout(self._times.request):
                request = await self._read()
            if request is None:
                return False
            head = request.method == "HEAD"
            response = await self._handle(request, self._caller)
        except Problem as problem:
            response = problem_response(problem)
        except h11.RemoteProtocolError as error:
            malformed = True
            response = problem_response(Problem(p.BAD_REQUEST, f"malformed HTTP: {str(error)[:200]}"))
        except TimeoutError:
            response = problem_response(Problem(p.TOO_SLOW, f"the request took more than {self._times.request:g} s"))
        whole = self._http.their_state is h11.DONE
        last = not whole or malformed or self._monotonic() >= self._ends
        await self._send(response, head=head, last=last)
        if response.status == p.TOO_LARGE.status and not whole:
            await self._pass_over()
        return not last and self._http.our_state is h11.DONE

    async def _feed(self) -> bool:
        data = await self._reader.read(_READ_BYTES)
        self._http.receive_data(data)
        return bool(data)

    async def _read(self) -> Request | None:
        """The next request, whole; None if the peer has ended the connection."""
        found: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
                await self._feed()
            elif isinstance(event, h11.Request):
                found = event
                _check_length(event)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
            elif isinstance(event, h11.EndOfMessage) and found is not None:
                return _request(found, bytes(body))
            else:
                return None

    async def _pass_over(self) -> None:
        """Reads what is left of a body, within bounds: to close at once could lose the answer (RFC 9112, 9.6)."""
        left = MAX_BODY_BYTES
        async with asyncio.timeout(self._times.linger):
            while left > 0 and (data := await self._reader.read(_READ_BYTES)):
                left -= len(data)

    async def _send(self, response: Response, *, head: bool, last: bool) -> None:
        headers = [
            ("date", formatdate(self._wall(), usegmt=True)),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            *response.headers,
        ]
        if response.status != HTTPStatus.NO_CONTENT:
            headers += [("content-type", response.media_type), ("content-length", str(len(response.body)))]
        if last:
            headers.append(("connection", "close"))
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return  # half of an answer cannot be taken back
        reason = HTTPStatus(response.status).phrase.encode()
        out = self._http.send(h11.Response(status_code=response.status, headers=headers, reason=reason)) or b""
        if not head and response.body:
            out += self._http.send(h11.Data(data=response.body)) or b""
        out += self._http.send(h11.EndOfMessage()) or b""
        await self._write(out)

    async def _write(self, data: bytes | None) -> None:
        self._writer.write(data or b"")
        try:
            async with asyncio.timeout(self._times.send):
                await self._writer.drain()
        except TimeoutError:
            self._writer.transport.abort()
            raise


def _too_large() -> Problem:
    return Problem(p.TOO_LARGE, f"the body has more than {MAX_BODY_BYTES} bytes")


def _check_length(request: h11.Request) -> None:
    """Refuses a body by its announced length, before it is read."""
    for name, value in request.headers:
        if name == b"content-length" and (len(value) > 9 or int(value) > MAX_BODY_BYTES):
            raise _too_large()


def _request(found: h11.Request, body: bytes) -> Request:
    headers: dict[str, str] = {}
    for name, value in found.headers:
        key = name.decode("ascii")
        if key in headers and key in ("content-type", "license-agent-session"):
            raise Problem(p.BAD_REQUEST, f"the header {key} is there twice")
        headers[key] = value.decode("latin-1")
    path, _, query = found.target.decode("ascii").partition("?")
    return Request(found.method.decode("ascii"), path, query, headers, body)
