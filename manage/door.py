"""Accepts connections: TLS with a certificate of the admin CA, so many at once, and none that only holds its place.

Everybody on the machine can connect to a port of loopback. Handshakes have little time and few places; where all are taken, the
oldest makes room, which costs only those who hold one. After the handshake a connection counts for its certificate.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import socket
import ssl
import struct
from collections.abc import Callable

from common.tokenbucket import BoundedBuckets

from .app import Caller
from .http import Handle, Session, Times

log = logging.getLogger(__name__)

MAX_HANDSHAKES = 32
MAX_CONNECTIONS = 64
MAX_CONNECTIONS_EACH = 8
"""Connections of one certificate."""
HANDSHAKE_S, SHUTDOWN_S = 5.0, 2.0
BACKLOG = 128
ACCEPT_AT_ONCE = 16
PAUSE_S = 0.5
"""How long nothing is accepted when the process has no file descriptors left."""
TOLD_PER_S, TOLD_AT_ONCE = 0.2, 20
"""How many refused connections the log names; everybody on the machine could fill it otherwise."""
_RESET = struct.pack("ii", 1, 0)


class Door:
    """A listening socket of loopback.

    Args:
        sock: bound; does not block.
        handle: answers requests.
        times: bounds of connections.
        monotonic: seconds.
        wall: seconds since 1970 UTC.

    Attributes:
        context: TLS of the next connection; None while there is none, and then nobody gets in.
    """

    def __init__(
        self,
        sock: socket.socket,
        handle: Handle,
        times: Times,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.context: ssl.SSLContext | None = None
        self._sock = sock
        self._handle, self._times = handle, times
        self._monotonic, self._wall = monotonic, wall
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[socket.socket, None] = {}
        self._open: dict[str, dict[asyncio.Transport, None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told = BoundedBuckets(TOLD_PER_S, TOLD_AT_ONCE, 1)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Accepts no more, and ends what is open."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for task in self._tasks:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                connection, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as problem:
                if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._rest()
                    return
                continue  # this one has gone already
            self._admit(connection)

    def _rest(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        log.error("no file descriptors are left; new connections wait")

        def resume() -> None:
            if self._sock.fileno() >= 0:
                self._loop.add_reader(self._sock.fileno(), self._accept)

        self._loop.call_later(PAUSE_S, resume)

    def _admit(self, connection: socket.socket) -> None:
        context = self.context
        if context is None or sum(map(len, self._open.values())) >= MAX_CONNECTIONS:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.close()
            return
        if len(self._handshakes) >= MAX_HANDSHAKES:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            with contextlib.suppress(OSError):  # it has ended by itself
                oldest.shutdown(socket.SHUT_RDWR)
        self._handshakes[connection] = None
        task = self._loop.create_task(self._serve(connection, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        connection.setblocking(False)
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError as error:  # SSLError among them: no certificate, or one that does not count
            connection.close()
            # asyncio sends no TLS alert, so this line is all that says why.
            if (why := _refusal(error)) and self._told.take("", self._monotonic()):
                log.warning("a connection was refused: %s", why)
            return
        finally:
            self._handshakes.pop(connection, None)
        try:
            await self._talk(transport, reader, asyncio.StreamWriter(transport, protocol, reader, self._loop))
        finally:
            transport.close()

    async def _talk(self, transport: asyncio.Transport, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True)
        if not certificate:  # the context demands one; without it nobody is anybody
            transport.abort()
            return
        caller = Caller(hashlib.sha256(certificate).hexdigest(), certificate)
        own = self._open.setdefault(caller.digest, {})
        if len(own) >= MAX_CONNECTIONS_EACH:
            next(iter(own)).abort()
        own[transport] = None
        try:
            await Session(reader, writer, caller, self._handle, self._times, self._monotonic, self._wall).run()
        finally:
            own.pop(transport, None)
            if not own and self._open.get(caller.digest) is own:
                del self._open[caller.digest]


def _refusal(error: OSError) -> str:
    """Why the handshake has refused a client, in words; empty if the client has only gone."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate does not count: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "the client has shown no certificate"
    return f"no TLS 1.3: {error.reason}" if isinstance(error, ssl.SSLError) and error.reason else ""
