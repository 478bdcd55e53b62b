"""Serves one connection of a client: a hello, then fetches one after another. No state outlives the connection."""

import array
import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable

from ipc.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ipc.frames import FrameDecoder
from ipc.linkmessages import (
    HELLO_TIMEOUT_S,
    LINK_MAX_FRAME_BYTES,
    LINK_VERSION,
    SESSION_IDLE_S,
    FailCode,
    Failed,
    Fetch,
    Hello,
    Provisioning,
    Ready,
    check_fetch,
    encode_link,
    to_link_decoder,
)
from ipc.messages import Request

from .clients import Client, NotAllowed, check_hello, check_request
from .config import WEBHOOK, LinkConfig, UpstreamConfig, parse_url
from .pins import parse_pins
from .tls import ClientKeyError, load_client_key
from .upstreams import CoreGone, FetchError, UpstreamClient
from .webhook import WebhookClient

log = logging.getLogger("link")

KNOWS_CLIENT = frozenset({"server", "ota"})
"""Upstreams that are shown the client certificate if they ask for one; no other server learns which machine this is."""
_READ_BYTES = 64 * 1024
_FD_BYTES = array.array("i").itemsize
SEND_TIMEOUT_S = 5.0
"""For a message that ends a session."""


class _Refused(Exception):
    """The session ends with this code."""

    def __init__(self, code: FailCode, text: str, request_id: int = 0) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.request_id = request_id


async def readable(sock: socket.socket) -> None:
    """Returns when a read of the socket would not block. Reads nothing, so that nothing is lost when it is cancelled."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


class Session:
    """Serves one connection.

    Args:
        sock: from the client, whose UID has been checked; non-blocking. It is closed at the end.
        config: where the link may go.
        client: what this one may ask for.
        monotonic: seconds that pass.
    """

    def __init__(self, sock: socket.socket, config: LinkConfig, client: Client, monotonic: Callable[[], float]) -> None:
        self._sock = sock
        self._config = config
        self._client = client
        self._monotonic = monotonic
        self._frames = FrameDecoder(LINK_MAX_FRAME_BYTES)
        self._decode = to_link_decoder().decode
        self._clients: dict[str, UpstreamClient] = {}
        self._key_fds: list[int] = []
        self._started = 0.0
        self._time = 0
        self._latest: int | None = 0
        self._sending = False

    async def run(self) -> None:
        """Serves until the connection ends, for any reason."""
        try:
            await self._converse()
        except _Refused as refused:
            await self._last_word(refused.code, refused.text, refused.request_id)
        except RemoteProtocolError as error:
            await self._last_word(FailCode.MALFORMED, error.text, error.request_id or 0)
        except (CoreGone, OSError, TimeoutError):
            pass
        finally:
            self._drop_key()
            for client in self._clients.values():
                await client.aclose()
            self._sock.close()

    async def _converse(self) -> None:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = await self._read_hello()
        if hello is None:
            return
        self._prepare(hello)
        await self._give(Ready(v=LINK_VERSION, id=hello.id))
        while True:
            async with asyncio.timeout(SESSION_IDLE_S):
                body = await self._next_frame()
            if body is None:
                return
            request = self._decode(body)
            if not isinstance(request, Fetch):
                raise _Refused(FailCode.MALFORMED, "a second hello on one connection", request.id)
            await self._attend(request)

    async def _read_hello(self) -> Hello | None:
        await readable(self._sock)
        data, ancillary, flags, _ = self._sock.recvmsg(_READ_BYTES, socket.CMSG_SPACE(2 * _FD_BYTES), socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % _FD_BYTES])
                self._key_fds.extend(numbers)
        body = await self._next_frame(data) if data else None
        if body is None:
            return None
        hello = self._decode(body)
        if not isinstance(hello, Hello):
            raise _Refused(FailCode.MALFORMED, "the first message must be a hello", hello.id)
        try:
            check_hello(self._client, hello, len(self._key_fds))
        except NotAllowed as error:
            raise _Refused(error.code, str(error), hello.id) from None
        if flags & socket.MSG_CTRUNC or len(self._key_fds) != (hello.certificates is not None):
            raise _Refused(
                FailCode.MALFORMED,
                "a hello must bring a certificate with one descriptor for its key, or neither",
                hello.id,
            )
        return hello

    def _prepare(self, hello: Hello) -> None:
        self._time, self._latest, self._started = hello.time, hello.latest, self._monotonic()
        upstreams = dict(self._config.upstreams)
        if hello.provisioning is not None:
            upstreams[hello.provisioning.upstream] = self._provisioned(hello.provisioning, hello.id)
        self._clients = {
            name: (WebhookClient if name == WEBHOOK else UpstreamClient)(upstream, self._between)
            for name, upstream in upstreams.items()
            if name in self._client.upstreams
        }
        try:
            if hello.certificates is not None:
                for name in KNOWS_CLIENT & self._clients.keys():
                    load_client_key(self._clients[name].context, hello.certificates, self._key_fds[0])
        except ClientKeyError as error:
            raise _Refused(FailCode.MALFORMED, str(error), hello.id) from None
        finally:
            self._drop_key()

    def _provisioned(self, wanted: Provisioning, request_id: int) -> UpstreamConfig:
        named = self._config.upstreams.get(wanted.upstream)
        if named is not None:
            # The file decides. A core that names another address gets an error and reaches neither.
            if wanted.url.rstrip("/") != named.url.rstrip("/"):
                text = f"the link's configuration has {named.url} for the upstream {wanted.upstream}, not {wanted.url}"
                raise _Refused(FailCode.NOT_ALLOWED, text[:400], request_id)
            return named
        if not self._config.provisioning:
            raise _Refused(FailCode.NOT_ALLOWED, "the link's configuration does not allow provisioning", request_id)
        try:
            url, host = parse_url(wanted.url)
            return UpstreamConfig(url, host, parse_pins(wanted.pins), self._config.provisioning_proxy)
        except ValueError as error:
            raise _Refused(FailCode.MALFORMED, f"provisioning: {error}", request_id) from None

    def _drop_key(self) -> None:
        while self._key_fds:
            os.close(self._key_fds.pop())

    def _between(self) -> tuple[int, int | None]:
        """The earliest and the latest time that it may be now."""
        passed = int(self._monotonic() - self._started)
        return self._time + passed, None if self._latest is None else max(self._time, self._latest) + passed

    async def _attend(self, fetch: Fetch) -> None:
        """Performs a fetch for as long as the core is there."""
        try:
            check_fetch(fetch)
        except LocalProtocolError as error:
            raise _Refused(FailCode.MALFORMED, error.text, fetch.id) from None
        work = asyncio.create_task(self._perform(fetch))
        watch = asyncio.create_task(self._core_leaves())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise CoreGone
            work.result()
        finally:
            for task in (work, watch):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):  # `work.result()` has raised what counts
                    await task

    async def _perform(self, fetch: Fetch) -> None:
        name = fetch.upstream
        client = self._clients.get(name)
        try:
            check_request(self._client, fetch)
            if client is None:
                raise FetchError(FailCode.NOT_ALLOWED, f"the link's configuration has no upstream {name}")
            status = await client.fetch(fetch, self._give)
            log.info("%s %s: %d", fetch.method, name, status)
        except NotAllowed as error:
            log.warning("refused %s: %s", self._client.name, error)
            await self._give(Failed(v=LINK_VERSION, id=fetch.id, code=error.code, text=str(error)))
        except FetchError as error:
            log.warning("%s %s: %s: %s", fetch.method, name, error.code, error.text)
            if self._sending:
                raise CoreGone from None  # in the middle of a frame: there is no next one
            if client is not None:
                await client.reset()
            await self._give(Failed(v=LINK_VERSION, id=fetch.id, code=error.code, text=error.text[:500]))

    async def _core_leaves(self) -> None:
        """Returns when the core closes its end. A next request may wait in the socket; then this waits for ever."""
        await readable(self._sock)
        with contextlib.suppress(OSError):
            if self._sock.recv(1, socket.MSG_PEEK):
                await asyncio.get_running_loop().create_future()

    async def _next_frame(self, data: bytes = b"") -> bytes | None:
        """The next body, or None at the end of the stream."""
        loop = asyncio.get_running_loop()
        while not (bodies := self._frames.receive_data(data, 1)):
            if not (data := await loop.sock_recv(self._sock, _READ_BYTES)):
                if self._frames.partial:
                    raise RemoteProtocolError(ErrorCode.BAD_MESSAGE, "the connection ended in the middle of a frame")
                return None
        return bodies[0]

    async def _give(self, message: Request) -> None:
        self._sending = True
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, encode_link(message))
        except OSError:
            raise CoreGone from None
        self._sending = False

    async def _last_word(self, code: FailCode, text: str, request_id: int) -> None:
        log.warning("a connection of %s is closed: %s: %s", self._client.name, code, text)
        with contextlib.suppress(CoreGone, TimeoutError):
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._give(Failed(v=LINK_VERSION, id=request_id, code=code, text=text[:500]))
