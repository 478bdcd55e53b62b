"""Adds to uvicorn's HTTP/1.1 protocol: the peer's certificate in the scope, a deadline per request, limits, strict parsing.

`tests/server/web/test_transport.py` tests the parts of uvicorn's class that are used: an upgrade that changes them fails there.
Without a certificate in the scope, the application takes no caller for an agent: this fails closed.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.stricthttp import StrictConnection
from contracts.exchange import RefusalCode
from server.base.limits import MAX_CONNECTIONS, MAX_HEAD_BYTES, REQUEST_DEADLINE_S

from .door import Visit
from .peers import Peer, peer_of
from .responses import error

PEER_EXTENSION = "license_server.peer"
"""In `scope["extensions"]`: the `Peer` of this connection. Absent without a client certificate."""
_WRITE_BUFFER = 2 * 1024 * 1024
"""More than any reply has. A client that does not read holds no task, only its connection, until that is idle too long."""


class ApiProtocol(H11Protocol):
    """A connection.

    Args:
        admits: whether the peer of a Unix socket may connect; None on a TLS listener.
        visit: hears of the connection's stages; None on a Unix socket.
        args: uvicorn's.
        kwargs: uvicorn's.
    """

    def __init__(
        self, *args: Any, admits: Callable[[Any], bool] | None = None, visit: Visit | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.conn = StrictConnection(h11.SERVER, MAX_HEAD_BYTES)
        self._admits = admits
        self._visit = visit
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Reads the peer's certificate, once for all requests of the connection."""
        super().connection_made(transport)
        if self._admits is not None and not self._admits(transport.get_extra_info("socket")):
            transport.abort()
            return
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        peer = _peer_of(transport.get_extra_info("ssl_object"))
        if peer is not None:
            self.app = _with_peer(self.app, peer)
        if self._visit is not None:
            self._visit.settled(transport, peer)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Limits the time from a request's first byte to its last."""
        if self.transport.is_closing():
            return  # nothing is read from a connection that was refused
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._arm()
        else:
            self._disarm()

    @staticmethod
    def malformed() -> tuple[str, bytes]:
        """Content type and body of the response to a malformed request."""
        return "application/json", error(400, RefusalCode.BAD_REQUEST, "malformed HTTP request").body().encode()

    def send_400_response(self, msg: str) -> None:
        """Answers a malformed request in the form of all errors, and ends the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            kind, body = self.malformed()
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"cache-control: no-store\r\nconnection: close\r\n\r\n" + body)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what the application still says goes nowhere
            self.cycle.message_event.set()
        self.transport.close()

    def on_response_complete(self) -> None:
        """Starts the deadline of the next request, which may have arrived in part."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the deadline."""
        self._disarm()
        if self._visit is not None:
            self._visit.ended()
        super().connection_lost(exc)

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_DEADLINE_S, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _peer_of(tls: Any) -> Peer | None:
    der = None if tls is None else tls.getpeercert(binary_form=True)
    return None if der is None else peer_of(der)


def _with_peer(app: Any, peer: Peer) -> Any:
    async def with_peer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), PEER_EXTENSION: peer}
        await app(scope, receive, send)

    return with_peer
