"""Serves the connections of both sockets: bytes to frames to requests, replies in the order of the requests.

A peer who is not allowed gets FORBIDDEN and is disconnected. The daemon stops reading from a peer who does not take its
replies, and the hub's sweep disconnects one that is silent or leaves a frame unfinished. Nothing here waits, so no peer delays
another.
"""

import asyncio
import logging
import math
import os
from collections.abc import Callable
from typing import Protocol, cast

from ipc.bounds import (
    IDLE_TIMEOUT_S,
    MAX_CONNECTIONS,
    MAX_UNSENT_BYTES,
    PARTIAL_FRAME_TIMEOUT_S,
    UNSENT_TIMEOUT_S,
)
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.frames import FrameDecoder
from ipc.messages import encode_error
from ipc.peer import Peer

from .admission import forbidden_text
from .handover import Handover

log = logging.getLogger(__name__)

KEPT_OPEN = frozenset({ErrorCode.UNSUPPORTED_VERSION, ErrorCode.UNKNOWN_OP, ErrorCode.BAD_REQUEST})
"""Errors of a message after which the stream goes on; after any other it ends, once the requests before it are answered."""
FRAMES_PER_TURN = 16
"""A peer who sends many requests at once gets as many answers before it is the others' turn."""


class Service(Protocol):
    """What answers on a socket."""

    name: str

    def admits(self, peer: Peer) -> bool:
        """Whether the peer is on the allow-list. A refusal is logged by `refused`."""
        ...

    def refused(self, peer: Peer) -> bool:
        """Records an attempt of a peer who is not allowed; returns whether to answer it."""
        ...

    def connection_limit(self) -> int:
        """Connections that one UID may have."""
        ...

    def connects_per_s(self) -> int:
        """New connections that one UID may make each second."""
        ...

    def skipped(self, peer: Peer, times: int, *, admitted: bool) -> None:
        """Records connections beyond that, which were closed at once; `peer` names no process."""
        ...

    def reply_to_known(self, frame: bytes, peer: Peer, now: float) -> bytes | None:
        """The reply to a whole frame that the service knows by its bytes; None of any other, of which it has noted nothing.

        Args:
            frame: what one read gave, while nothing of this peer waits.
            peer: who sent it.
            now: monotonic seconds.
        """
        ...

    def handle(self, body: bytes, connection: "Connection") -> bytes | None:
        """The reply frame; None if the service sends it later by itself."""
        ...

    def rejected(self, peer: Peer, code: ErrorCode) -> None:
        """Records an error that the connection itself answered."""
        ...


class Log(Protocol):
    """The audit log as the hub sees it: replies leave after the records that they depend on."""

    @property
    def pending(self) -> bool:
        """Whether records wait for `flush`."""
        ...

    def flush(self) -> None:
        """Writes them; never raises."""
        ...


class NoLog:
    """Takes the place of the log while the daemon cannot open it."""

    pending = False

    def flush(self) -> None:
        """Nothing to write."""


class Hub:
    """All connections of a daemon, and the end of each loop tick: the log is written, then the replies leave.

    Args:
        monotonic: seconds.

    Attributes:
        log: replies wait for it.
        last_activity: when the last request came.
        last_active: who sent it.
    """

    def __init__(self, monotonic: Callable[[], float], log: Log | None = None) -> None:
        self.monotonic = monotonic
        self.log: Log = log or NoLog()
        self.last_active: Connection | None = None
        self.connections: set[Connection] = set()
        self.per_uid: dict[tuple[str, int], int] = {}
        self._waiting: list[Connection] = []
        self.last_activity = 0.0

    def schedule(self) -> None:
        """Arranges for the end of this loop tick; the audit log calls this when its first record waits."""
        asyncio.get_running_loop().call_soon(self.end_tick)

    def end_tick(self) -> None:
        """Writes the log and sends what waited for it."""
        self.log.flush()
        self.release()

    def wait(self, connection: "Connection") -> None:
        """Remembers a connection whose replies go out after the flush."""
        self._waiting.append(connection)

    def release(self) -> None:
        """Sends what has waited; called after each flush of the audit log."""
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.send_queued()

    def sweep(self) -> None:
        """Disconnects peers who are silent or stuck; called every second."""
        now = self.monotonic()
        for connection in list(self.connections):
            connection.check_timeouts(now)

    def recheck(self) -> None:
        """Disconnects peers whom a new configuration no longer allows."""
        for connection in list(self.connections):
            connection.recheck()

    def close_all(self) -> None:
        """Closes every connection once its replies have been sent."""
        for connection in list(self.connections):
            connection.close()


class Connection(asyncio.Protocol):
    """A peer on one of the sockets.

    Attributes:
        peer: as the kernel vouches for it.
    """

    def __init__(self, hub: Hub, service: Service, peer: Peer) -> None:
        self._hub = hub
        self._service = service
        self._handle = service.handle
        self._reply_to_known = service.reply_to_known
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._queued: list[bytes] = []
        self._counted = False
        self._last_request = hub.monotonic()
        self._partial_since: float | None = None
        self._stuck_since: float | None = None
        self._held: list[bytes] = []
        self._pause = 0.0
        self._continuing = False
        self._closing = False
        self._closing_since = 0.0
        self._owed = 0  # replies that the service will send later
        self._last_words: bytes | None = None
        self._handover: Handover | None = None
        self._descriptor: int | None = None
        self.peer = peer

    # Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admits or refuses the peer."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        if not self._service.admits(self.peer):
            self._service.refused(self.peer)
            self._reject(ErrorCode.FORBIDDEN, forbidden_text(self._service.name, self.peer))
            return
        key = (self._service.name, self.peer.uid)
        count = self._hub.per_uid.get(key, 0)
        # However many tills there are, an administrator gets in.
        full = self._service.name != "admin" and len(self._hub.connections) >= MAX_CONNECTIONS
        if count >= self._service.connection_limit() or full:
            self._service.rejected(self.peer, ErrorCode.RATE_LIMITED)
            self._reject(ErrorCode.RATE_LIMITED, "too many connections; use fewer, or close idle ones")
            return
        self._hub.per_uid[key] = count + 1
        self._hub.connections.add(self)
        self._counted = True

    def _reject(self, code: ErrorCode, text: str) -> None:
        self._closing = True
        self._closing_since = self._hub.monotonic()
        self._last_words = encode_error(code, text, None)
        if not self._owed:
            self._part()

    def _part(self) -> None:
        """Sends the error that ends the connection, after the replies to everything that was accepted before it."""
        words, self._last_words = self._last_words, None
        self._closing_since = self._hub.monotonic()
        if words is not None:
            self._queue(words)

    def data_received(self, data: bytes) -> None:
        """Answers what has arrived, as far as this peer's turn goes."""
        if self._closing:
            return
        if self._continuing:
            # It was read before reading was paused.
            self._decoder.hold(data)
            return
        hub, decoder = self._hub, self._decoder
        now = self._last_request = hub.last_activity = hub.monotonic()
        alone = hub.last_active is self
        hub.last_active = self
        # Nearly always one request came, and mostly for a license that came before.
        reply = None if decoder.partial or self._queued else self._reply_to_known(data, self.peer, now)
        if reply is None:
            try:
                bodies = decoder.receive_data(data, FRAMES_PER_TURN)
                if len(bodies) != 1 or decoder.partial or decoder.error is not None or self._queued:
                    self._take_turn(bodies, now)
                    return
                reply = self._handle(bodies[0], self)
            except RemoteProtocolError as error:
                self._break(error)
                return
            self._partial_since = None
            if self._pause:
                self._go_on_later()
            if reply is None:
                self._owed += 1
                return
        if self._transport is None:
            return
        if hub.log.pending:
            if not alone:
                self._queued.append(reply)
                hub.wait(self)
                return
            # Nobody else has asked since this peer's last request: there is nothing to gather for one write.
            hub.log.flush()
        self._transport.write(reply)

    def _take_turn(self, bodies: list[bytes], now: float) -> None:
        decoder = self._decoder
        for number, body in enumerate(bodies, start=1):
            try:
                reply = self._handle(body, self)
            except RemoteProtocolError as error:
                self._break(error)
                return
            if reply is not None:
                self._queued.append(reply)
            else:
                self._owed += 1
            if self._pause:
                self._held = bodies[number:]
                break
        if self._pause or decoder.more:
            self._go_on_later()
        elif decoder.error is not None:
            self._break(decoder.error)
            return
        if not decoder.partial or self._continuing:
            self._partial_since = None
        elif bodies or self._partial_since is None:
            self._partial_since = now
        self._send_or_wait()

    def throttle(self, seconds: float) -> None:
        """Leaves what else this peer has sent, or will send, for later; called by the service while it handles a request."""
        self._pause = seconds

    def hold(self) -> None:
        """As `throttle`, until the service calls `go_on`."""
        self._pause = math.inf

    def go_on(self) -> None:
        """Looks at what this peer has sent since `hold`."""
        asyncio.get_running_loop().call_soon(self._continue)

    def expect_descriptor(self) -> None:
        """As `hold`, until the peer has sent one byte with one open file; called by the service while it handles a request.

        The peer sends it once it has the reply. Without it the connection ends.

        Raises:
            OSError: too many files are open.
        """
        if self._handover is None and self._transport is not None:
            # Whoever announces a second file wants to hand over that one.
            self._forget_descriptor()
            self._handover = Handover(self._transport.get_extra_info("socket").fileno(), self._handed)
        self.hold()

    def take_descriptor(self) -> int | None:
        """The file that the peer has handed over, which is the caller's to close from then on; None without one."""
        descriptor, self._descriptor = self._descriptor, None
        return descriptor

    def _handed(self, descriptor: int | None) -> None:
        self._handover = None
        if descriptor is None:
            self._break(RemoteProtocolError(ErrorCode.BAD_MESSAGE, "one byte with one open file was to come, and came not"))
            return
        self._descriptor = descriptor
        self._continue()

    def _forget_descriptor(self) -> None:
        descriptor = self.take_descriptor()
        if descriptor is not None:
            os.close(descriptor)

    def _go_on_later(self) -> None:
        pause, self._pause = self._pause, 0.0
        self._continuing = True
        self._update_reading()
        loop = asyncio.get_running_loop()
        if pause == math.inf:
            return
        if pause:
            loop.call_later(pause, self._continue)
        else:
            loop.call_soon(self._continue)

    def _continue(self) -> None:
        if self._handover is not None:
            return
        self._continuing = False
        if self._closing or self._transport is None:
            return
        now = self._last_request = self._hub.last_activity = self._hub.monotonic()
        held, self._held = self._held, []
        try:
            bodies = held or self._decoder.receive_data(b"", FRAMES_PER_TURN)
        except RemoteProtocolError as error:
            self._break(error)
            return
        self._take_turn(bodies, now)
        self._update_reading()

    def _update_reading(self) -> None:
        """Reads from the peer only if it takes replies and it is its turn."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._continuing or self._stuck_since is not None:
            transport.pause_reading()
        elif not self._closing:
            transport.resume_reading()

    def _break(self, error: RemoteProtocolError) -> None:
        """Ends a stream in which no next frame can be found."""
        if self._closing:
            return
        self._service.rejected(self.peer, error.code)
        self._reject(error.code, error.text)

    def _queue(self, frame: bytes) -> None:
        self._queued.append(frame)
        self._send_or_wait()

    def reply_later(self, frame: bytes) -> None:
        """Sends a reply of a request whose handling took time."""
        self._owed -= 1
        if self._transport is not None and not self._transport.is_closing():
            self._queue(frame)
            if self._closing and not self._owed:
                self._part()

    def _send_or_wait(self) -> None:
        if not self._queued:
            return
        if self._hub.log.pending:
            self._hub.wait(self)
        else:
            self.send_queued()

    def send_queued(self) -> None:
        """Sends the replies that are ready."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self._queued.clear()
            return
        if self._queued:
            transport.write(self._queued[0] if len(self._queued) == 1 else b"".join(self._queued))
            self._queued.clear()
        if self._closing and not self._owed:
            transport.close()

    def pause_writing(self) -> None:
        """The peer takes no more replies: stop reading its requests."""
        self._stuck_since = self._hub.monotonic()
        self._update_reading()

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._stuck_since = None
        self._update_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the peer."""
        self._transport = None
        if self._handover is not None:
            self._handover.close()
            self._handover = None
        self._forget_descriptor()
        self._queued.clear()
        if self._hub.last_active is self:
            self._hub.last_active = None
        if self._counted:
            self._counted = False
            self._hub.connections.discard(self)
            key = (self._service.name, self.peer.uid)
            left = self._hub.per_uid[key] - 1
            if left:
                self._hub.per_uid[key] = left
            else:
                del self._hub.per_uid[key]

    def recheck(self) -> None:
        """Disconnects the peer if it is no longer allowed."""
        if not self._closing and not self._service.admits(self.peer):
            self._reject(ErrorCode.FORBIDDEN, forbidden_text(self._service.name, self.peer))

    # Time

    def check_timeouts(self, now: float) -> None:
        """Disconnects the peer if it has been silent or stuck for too long."""
        transport = self._transport
        if transport is None:
            return
        if self._closing and self._owed:
            return
        if self._closing:
            # It was sent its last reply; if it does not even take that, the connection is aborted.
            if now - self._closing_since > UNSENT_TIMEOUT_S:
                transport.abort()
        elif self._stuck_since is not None:
            if now - self._stuck_since > UNSENT_TIMEOUT_S:
                transport.abort()
        elif self._partial_since is not None and now - self._partial_since > PARTIAL_FRAME_TIMEOUT_S:
            self._service.rejected(self.peer, ErrorCode.TIMED_OUT)
            self._reject(ErrorCode.TIMED_OUT, f"a frame was left unfinished for {PARTIAL_FRAME_TIMEOUT_S} s")
        elif now - self._last_request > IDLE_TIMEOUT_S and self._service.name == "pos":
            self._reject(ErrorCode.TIMED_OUT, f"no request for {IDLE_TIMEOUT_S} s")

    def close(self) -> None:
        """Closes after the queued replies; those that are still owed are lost."""
        self._owed = 0
        self._closing = True
        self._closing_since = self._hub.monotonic()
        if self._hub.log.pending and self._queued:
            return
        self.send_queued()
