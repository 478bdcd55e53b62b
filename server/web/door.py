"""Accepts the connections of the TLS listener: each is admitted by its address before the handshake costs anything."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

from server.base.limits import HANDSHAKE_DEADLINE_S, REFUSED_PEER_RATE, address_key, buckets

from .admission import Admission, Entry
from .peers import Peer

SHUTDOWN_DEADLINE_S = 5
"""How long the peer may take to close TLS."""
ACCEPT_AT_ONCE = 64
"""Connections that are accepted in one turn of the event loop."""
PAUSE_S = 0.5
"""How long nothing is accepted when the process has no file descriptors left."""
_RESET = struct.pack("ii", 1, 0)
_log = logging.getLogger("license_server")


class Visit:
    """One connection, as its protocol reports on it."""

    def __init__(self, admission: Admission, entry: Entry) -> None:
        self._admission = admission
        self._entry = entry

    def settled(self, transport: asyncio.Transport, peer: Peer | None) -> None:
        """The handshake has ended."""
        self._entry.close = transport.abort
        # By the certificate: who holds an old one of an agent must not end the connections of the agent itself.
        self._admission.settle(self._entry, None if peer is None else peer.fingerprint)

    def ended(self) -> None:
        """The connection has ended."""
        self._admission.leave(self._entry)


class Door:
    """A listening TCP socket with TLS; a part of `asyncio.Server`, as uvicorn uses it.

    Args:
        sock: bound.
        context: TLS.
        protocol: makes the protocol of one connection.
        steady: seconds of a clock that never goes back.
        backlog: connections that may wait.

    Attributes:
        context: TLS for the next connection; may be replaced.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        protocol: Callable[[Visit], asyncio.Protocol],
        steady: Callable[[], float],
        backlog: int,
    ) -> None:
        self._sock = sock
        self.context = context
        self._protocol = protocol
        self._steady = steady
        self.admission = Admission(steady)
        self._told = buckets(REFUSED_PEER_RATE)
        self._handshakes: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        sock.listen(backlog)
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Accepts no more. Connections that are open stay."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for task in self._handshakes:
            task.cancel()

    async def wait_closed(self) -> None:
        """Waits for handshakes that were under way."""
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                connection, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as problem:
                if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause()
                    return
                continue  # this one has gone already
            self._admit(connection, str(address[0]))

    def _admit(self, connection: socket.socket, address: str) -> None:
        entry = self.admission.arrive(address, lambda: _hang_up(connection))
        if entry is None:
            if self._told.take(address_key(address), self._steady()):
                fields = {"address": address, "why": "too many connections"}
                _log.warning("a connection was refused", extra={"fields": fields})
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.close()
            return
        task = self._loop.create_task(self._shake_hands(connection, entry))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, entry: Entry) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        options: dict[str, Any] = {
            "ssl_handshake_timeout": HANDSHAKE_DEADLINE_S,
            "ssl_shutdown_timeout": SHUTDOWN_DEADLINE_S,
        }
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(Visit(self.admission, entry)), connection, ssl=self.context, **options
            )
        except (OSError, asyncio.CancelledError):
            self.admission.leave(entry)
            connection.close()

    def _pause(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        _log.error("no file descriptors are left; new connections wait")

        def resume() -> None:
            if self._sock.fileno() >= 0:
                self._loop.add_reader(self._sock.fileno(), self._accept)

        self._loop.call_later(PAUSE_S, resume)


def _hang_up(connection: socket.socket) -> None:
    """Ends a connection in its handshake: what waits for its bytes sees the end of them."""
    with contextlib.suppress(OSError):  # it has ended by itself
        connection.shutdown(socket.SHUT_RDWR)
