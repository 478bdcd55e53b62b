"""Speaks HTTP/1.1 to the license server for many machines, over as many connections as are allowed and no more.

With TLS, a connection belongs to the machine whose client certificate it was made with, and ends with the machine's contact, as
an agent's does. At the server's Unix socket, where a proxy speaks for all, connections are kept and serve one machine after the
other.
"""

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

import msgspec

from .machine import Machine

TIMEOUT_S = 60.0
MAX_BODY_BYTES = 2**20
_STATUS = b"HTTP/1.1 "


class NoAnswer(Exception):
    """The server did not answer; the text says what happened."""


class Problem(msgspec.Struct):
    """An error of the server that is not signed, as far as it is read here."""

    code: str = ""
    text: str = ""


class Body(msgspec.Struct):
    """The members of the server's responses that are read here."""

    challenge: str = ""
    reply: str = ""
    error: Problem = msgspec.field(default_factory=Problem)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response.

    Attributes:
        status: of HTTP.
        body: as it came.
        retry_after_s: what the server asks for; None if nothing.
        seconds: from the request to the whole response.
    """

    status: int
    body: bytes
    retry_after_s: float | None
    seconds: float

    def read(self) -> Body:
        """The body's members. Raises NoAnswer if it is not the server's."""
        try:
            return msgspec.json.decode(self.body, type=Body)
        except msgspec.MsgspecError as problem:
            raise NoAnswer(f"status {self.status} with a body that is not the server's: {problem}"[:200]) from None


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is.

    Attributes:
        url: `https://HOST:PORT`, or `unix:FILE`.
        root: PEM of the root certificate that the server's certificate must lead to; for TLS.
    """

    url: str
    root: str = ""

    @property
    def socket(self) -> str | None:
        """The Unix socket; None for TLS."""
        return self.url.removeprefix("unix:") if self.url.startswith("unix:") else None


@dataclass(slots=True)
class _Pair:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: bool = False


@dataclass(slots=True)
class Line:
    """What one machine asks over.

    Attributes:
        machine: the machine.
        wire: whose line it is.
    """

    machine: Machine
    wire: "Wire"
    _pair: _Pair | None = field(default=None)

    async def post(self, path: str, content: object) -> Answer:
        """Sends a request, and again if a kept connection has ended meanwhile. Raises NoAnswer."""
        body = msgspec.json.encode(content)
        lines = [
            f"POST /api/v1/{path} HTTP/1.1",
            "Host: fleet",
            "Content-Type: application/json",
            *self.wire.headers(self.machine),
        ]
        request = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
        return await self._exchange(request)

    async def get(self, path: str) -> Answer:
        """Fetches a document. Raises NoAnswer."""
        lines = [f"GET /api/v1/{path} HTTP/1.1", "Host: fleet", *self.wire.headers(self.machine)]
        return await self._exchange("\r\n".join([*lines, "", ""]).encode())

    async def _exchange(self, request: bytes) -> Answer:
        began = self.wire.steady()
        while True:
            if self._pair is None:
                self._pair = await self.wire.connect(self.machine)
            again, pair = self._pair.used, self._pair
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    pair.writer.write(request)
                    status, headers, body = await _response(pair.reader)
            except TimeoutError:
                self.close()
                raise NoAnswer(f"no response within {TIMEOUT_S:.0f} s") from None
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as problem:
                self.close()
                if again and isinstance(problem, OSError | EOFError):
                    continue  # an idle connection ends some time; the same request gets the same reply
                raise NoAnswer(f"the connection failed: {problem or type(problem).__name__}") from None
            pair.used = True
            if headers.get("connection") == "close":
                self.close()
            retry = headers.get("retry-after", "")
            wait = float(retry) if retry.isascii() and retry.isdigit() else None
            return Answer(status, body, wait, self.wire.steady() - began)

    def close(self) -> None:
        """Ends the connection."""
        pair, self._pair = self._pair, None
        if pair is not None:
            pair.writer.transport.abort()

    def take(self) -> _Pair | None:
        """Gives the connection away."""
        pair, self._pair = self._pair, None
        return pair


async def _response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    if not status.encode("latin-1").startswith(_STATUS):
        raise ValueError(f"not HTTP: {status[:40]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= MAX_BODY_BYTES:
        raise ValueError(f"a body of {length} bytes")
    return int(status.split()[1]), headers, await reader.readexactly(length)


class Wire:
    """The connections of a fleet.

    Args:
        target: where the server is.
        most: connections at once.
        steady: seconds of a clock that never goes back.
    """

    def __init__(self, target: Target, most: int, steady: Callable[[], float] = time.monotonic) -> None:
        self.steady = steady
        self._target = target
        self._slots = asyncio.Semaphore(most)
        self._kept: list[_Pair] = []

    @asynccontextmanager
    async def line(self, machine: Machine) -> AsyncIterator[Line]:
        """What a machine asks over during a contact; waits while as many machines as there may be connections ask."""
        async with self._slots:
            found = Line(machine, self)
            if self._target.socket is not None and self._kept:
                found._pair = self._kept.pop()
            try:
                yield found
                if self._target.socket is not None:
                    pair = found.take()
                    if pair is not None:
                        self._kept.append(pair)
            finally:
                found.close()

    async def connect(self, machine: Machine) -> _Pair:
        """A new connection. Raises NoAnswer."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._target.socket is not None:
                    return _Pair(*await asyncio.open_unix_connection(self._target.socket, limit=MAX_BODY_BYTES))
                where = urlsplit(self._target.url)
                host, own = where.hostname or "", (machine.address, 0) if where.hostname == "127.0.0.1" else None
                return _Pair(
                    *await asyncio.open_connection(
                        host, where.port or 443, ssl=self._context(machine), local_addr=own, limit=MAX_BODY_BYTES
                    )
                )
        except TimeoutError:
            raise NoAnswer(f"no connection within {TIMEOUT_S:.0f} s") from None
        except OSError as problem:
            raise NoAnswer(f"no connection: {problem.strerror or problem}") from None

    def headers(self, machine: Machine) -> list[str]:
        """What a proxy writes into a machine's requests; nothing with TLS."""
        if self._target.socket is None:
            return []
        own = machine.certificates.partition("-----END CERTIFICATE-----\n")
        certificate = [f"Client-Certificate: {quote(own[0] + own[1], safe='')}"] if machine.certificates else []
        return [*certificate, f"Client-Address: {machine.address}"]

    def _context(self, machine: Machine) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self._target.root)
        if machine.certificates:
            # The library reads keys from files only; this one is never on a disk.
            file = os.memfd_create("key")
            try:
                os.write(file, machine.tls_pem)
                context.load_cert_chain(f"/proc/self/fd/{file}")
            finally:
                os.close(file)
        return context

    def close(self) -> None:
        """Ends all connections."""
        while self._kept:
            with contextlib.suppress(RuntimeError):
                self._kept.pop().writer.transport.abort()
