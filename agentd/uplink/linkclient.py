"""Fetches through the link, the core's only way to a network. What the link sends is parsed as strictly as hostile input.

A session is one connection: hello, then one fetch after another. The TLS client key goes to the link as a sealed memfd, in the
one `sendmsg` that carries the hello, before the socket goes to the loop (uvloop does not support ancillary data).
"""

import array
import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.text import forbidden_in
from ipc.bounds import HEADER_BYTES
from ipc.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ipc.linkmessages import (
    ANSWER_HEADERS,
    LINK_MAX_FRAME_BYTES,
    LINK_VERSION,
    Chunk,
    End,
    FailCode,
    Failed,
    Fetch,
    Head,
    Hello,
    Provisioning,
    Ready,
    check_fetch,
    encode_link,
    from_link_decoder,
    to_link_decoder,
)
from ipc.messages import Request

from .daemons import NoDaemon, connect_to

LINK_USER = "license-agent-link"
READY_TIMEOUT_S = 30.0
"""For the answer to a hello; the service manager may have to start the link first."""
GRACE_S = 5.0
"""How much later than its own deadline a fetch may end."""
DEFAULT_MAX_BODY = 1 << 20

Key = bytes | bytearray | memoryview


class LinkUnavailable(Exception):
    """No link answers, it cannot be trusted, or it broke off; the text says which. A transport error, never a refusal."""


class FetchFailed(Exception):
    """The link answered, and the fetch did not bring a whole response.

    Attributes:
        code: why.
        text: the same for people.
    """

    def __init__(self, code: FailCode, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class FetchReply:
    """A whole response.

    Attributes:
        status: of HTTP, 200 to 599 without redirects.
        headers: by lower-case name; only those that the link passes on.
        body: at most the fetch's `max_body` bytes.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class StreamedResponse:
    """A response that is still arriving.

    Attributes:
        status: of HTTP.
        headers: by lower-case name.
        complete: the body came to its end.
    """

    def __init__(self, session: "LinkSession", head: Head, max_body: int, deadline: float) -> None:
        self._session = session
        self._max_body = max_body
        self._deadline = deadline
        self.status = head.status
        self.headers: Mapping[str, str] = dict(head.headers)
        self.complete = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces of at most 32 KiB; the server waits while the caller does.

        Raises:
            FetchFailed: the body does not come to its end.
            LinkUnavailable: the link broke off.
        """
        size = 0
        while True:
            message = await self._session.receive((Chunk, End), self._deadline)
            if isinstance(message, Chunk):
                size += len(message.data)
                if size > self._max_body:
                    raise LinkUnavailable("the link sent more than was asked for")
                yield message.data
            elif message.size != size:
                raise LinkUnavailable("the link lost a part of the answer")
            else:
                self.complete = True
                self._session.settled()
                return


class LinkSession:
    """A connection to the link after its hello. `LinkClient.session` makes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decode = from_link_decoder().decode
        self._last_id = 0
        self._open_exchange = False

    async def fetch(
        self,
        upstream: str,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        max_body: int = DEFAULT_MAX_BODY,
        timeout_s: float = 30.0,
    ) -> FetchReply:
        """Performs a request and returns the whole answer.

        Args:
            upstream: `server`, `enrollment`, `ota` or `webhook`.
            method: `GET` or `POST`.
            path: under the upstream's base, beginning with '/'; with its query if it has one.
            body: at most 64 KiB.
            headers: of the closed list in `ipc.linkmessages.RequestHeader`.
            max_body: most bytes of the answer, up to 64 MiB.
            timeout_s: for all of it, 0.1 to 3600 s.

        Raises:
            FetchFailed: the link says why the response is not whole.
            LinkUnavailable: the link broke off; this session cannot be used any more.
            LocalProtocolError: such a request may not be sent; nothing was.
        """
        stream = self.stream(upstream, method, path, body, headers, max_body, timeout_s)
        async with stream as answer:
            whole = bytearray()
            async for chunk in answer.chunks():
                whole += chunk
        return FetchReply(answer.status, answer.headers, bytes(whole))

    @contextlib.asynccontextmanager
    async def stream(
        self,
        upstream: str,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        max_body: int = DEFAULT_MAX_BODY,
        timeout_s: float = 30.0,
    ) -> AsyncIterator[StreamedResponse]:
        """As `fetch`, for bodies that are not to be held in memory: `async with … as answer`, then `answer.chunks()`.

        A session whose stream was not read to its end cannot be used any more.
        """
        if self._open_exchange:
            raise LinkUnavailable("an answer of this session was not read to its end")
        self._last_id += 1
        frame = _checked_frame(
            {
                "upstream": upstream,
                "method": method,
                "path": path,
                "headers": tuple((headers or {}).items()),
                "body": bytes(body),
                "max_body": max_body,
                "timeout_ms": round(timeout_s * 1000),
            },
            self._last_id,
        )
        deadline = asyncio.get_running_loop().time() + timeout_s + GRACE_S
        self._open_exchange = True
        await self._send(frame, deadline)
        head = await self.receive((Head,), deadline)
        yield StreamedResponse(self, head, max_body, deadline)

    async def hello(self, request_id: int) -> None:
        """Waits for the answer to the hello.

        Raises:
            FetchFailed: the link refuses it.
            LinkUnavailable: no answer.
        """
        self._last_id = request_id
        await self.receive((Ready,), asyncio.get_running_loop().time() + READY_TIMEOUT_S)

    def settled(self) -> None:
        """The answer under way has ended; the next request may go."""
        self._open_exchange = False

    async def receive(self, kinds: tuple[type[Request], ...], deadline: float) -> Any:
        """The next message, which must answer the last request and be of one of these kinds.

        Raises:
            FetchFailed: it is `Failed`.
            LinkUnavailable: anything else, or nothing until `deadline` (the loop's time).
        """
        message = await self._next(deadline)
        if isinstance(message, Failed) and message.id in (self._last_id, 0):
            if message.code is not FailCode.MALFORMED and message.id == self._last_id:
                self.settled()
            raise FetchFailed(message.code, _clean(message.text))
        if message.id != self._last_id or not isinstance(message, kinds):
            raise LinkUnavailable(f"the link sent {type(message).__name__} out of turn")
        if isinstance(message, Head):
            names = [name for name, _ in message.headers]
            if not ANSWER_HEADERS.issuperset(names) or len(set(names)) != len(names):
                raise LinkUnavailable("the link sent a header that is not on its list")
        return message

    async def _next(self, deadline: float) -> Any:
        try:
            async with asyncio.timeout_at(deadline):
                length = int.from_bytes(await self._reader.readexactly(HEADER_BYTES), "big")
                if not 0 < length <= LINK_MAX_FRAME_BYTES:
                    raise LinkUnavailable(f"the link sent a frame of {length} bytes")
                return self._decode(await self._reader.readexactly(length))
        except TimeoutError:
            raise LinkUnavailable("the link did not answer in time") from None
        except (asyncio.IncompleteReadError, OSError):
            raise LinkUnavailable("the link broke off") from None
        except RemoteProtocolError as error:
            raise LinkUnavailable(f"the link sent a malformed message: {_clean(error.text)}") from None

    async def _send(self, frame: bytes, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                self._writer.write(frame)
                await self._writer.drain()
        except (TimeoutError, OSError):
            raise LinkUnavailable("the link does not accept the request") from None


class LinkClient:
    """Opens sessions.

    Args:
        path: the link's socket.
        link_uid: whom the link runs as; None for the user `license-agent-link`, if there is one.
    """

    def __init__(self, path: str | os.PathLike[str], link_uid: int | None = None) -> None:
        self._path = os.fspath(path)
        self._link_uid = link_uid

    @contextlib.asynccontextmanager
    async def session(
        self,
        time: int,
        certificates: str | None = None,
        key: Key | None = None,
        provisioning: Provisioning | None = None,
        latest: int | None = 0,
    ) -> AsyncIterator[LinkSession]:
        """A session, for the length of a block.

        Args:
            time: a time that has certainly passed, seconds since 1970 UTC; a certificate that ended before it is refused.
            certificates: client certificate and intermediates, PEM; None for none.
            key: its private key (PEM, or PKCS#8 in DER). It is copied into a memfd that only the link gets; the caller
                wipes its own copy.
            provisioning: an upstream that the link's configuration does not name.
            latest: the latest time that it may be, as in `Hello`.

        Raises:
            LinkUnavailable: no link answers, or it cannot be trusted.
            FetchFailed: the link refuses the hello.
            LocalProtocolError: only one of certificates and key was given.
        """
        if (certificates is None) != (key is None):
            raise LocalProtocolError(ErrorCode.BAD_REQUEST, "a client certificate needs its key, and a key its certificate")
        hello = Hello(v=LINK_VERSION, id=1, time=time, certificates=certificates, provisioning=provisioning, latest=latest)
        frame = encode_link(hello)
        sock = self._connect()
        try:
            rest = _send_hello(sock, frame, key)
            reader, writer = await asyncio.open_unix_connection(sock=sock)
        except (LinkUnavailable, OSError) as error:
            sock.close()
            raise LinkUnavailable(f"the link does not accept the hello: {error}") from None
        except BaseException:
            sock.close()
            raise
        try:
            session = LinkSession(reader, writer)
            writer.write(rest)
            await session.hello(hello.id)
            yield session
        finally:
            writer.transport.abort()

    def _connect(self) -> socket.socket:
        try:
            return connect_to(self._path, "link", LINK_USER, self._link_uid)
        except NoDaemon as error:
            raise LinkUnavailable(str(error)) from None


def _checked_frame(fields: dict[str, Any], request_id: int) -> bytes:
    try:
        frame = encode_link(Fetch(v=LINK_VERSION, id=request_id, **fields))
        check_fetch(to_link_decoder().decode(frame[HEADER_BYTES:]))
    except RemoteProtocolError as error:
        raise LocalProtocolError(error.code, error.text) from None
    return frame


def _send_hello(sock: socket.socket, frame: bytes, key: Key | None) -> bytes:
    """Sends the hello with its descriptor; returns the bytes that the kernel did not take."""
    if key is None:
        return frame[sock.send(frame) :]
    number = os.memfd_create("tls-key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if os.write(number, key) != len(memoryview(key).cast("B")):
            raise LinkUnavailable("the key does not fit into memory")
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
        sent = sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [number]))])
    finally:
        os.close(number)
    return frame[sent:]


def _clean(text: str) -> str:
    """Text that may go to a log and a terminal: the link's words may come from a hostile network."""
    return "".join(character if forbidden_in(character) is None else "?" for character in text[:500])
