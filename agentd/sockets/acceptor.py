"""Accepts connections on a listening socket.

Not by the loop's own server: that calls listen(2) again, and on a socket that systemd made this would change whom clients
see as its server, from root to the daemon's user.
"""

import asyncio
import contextlib
import logging
import socket
from functools import partial

from common.tokenbucket import Buckets
from ipc.errors import ErrorCode
from ipc.messages import encode_error
from ipc.peer import Peer, peer_of

from .admission import forbidden_text
from .connection import Connection, Hub, Service
from .pace import ConnectPace
from .unauthorized import ANSWERS_PER_S

log = logging.getLogger(__name__)

ACCEPTS_PER_TURN = 32
_OUT_OF_FILES_PAUSE_S = 0.1
REPORT_EVERY_S = 1.0
TIDY_EVERY_S = 60.0
_TOO_OFTEN = "too many new connections in a second; keep one open"


class Acceptor:
    """Accepts on a socket from now on; `stop` ends it, and the socket stays open.

    Args:
        sock: listening, non-blocking.
        hub: of the connections.
        service: answers.
    """

    def __init__(self, sock: socket.socket, hub: Hub, service: Service) -> None:
        self._sock = sock
        self._hub = hub
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._serving: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._pace = ConnectPace()
        self._answers = Buckets(ANSWERS_PER_S, ANSWERS_PER_S)
        self._report_at: asyncio.TimerHandle | None = None
        self._tidied = hub.monotonic()
        self._loop.add_reader(sock, self._accept_some)

    def _accept_some(self) -> None:
        now = self._hub.monotonic()
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # Out of file descriptors: others wait in the backlog meanwhile.
                log.warning("a connection could not be accepted: %s", error.strerror)
                self._loop.remove_reader(self._sock)
                self._pause = self._loop.call_later(_OUT_OF_FILES_PAUSE_S, self._resume)
                return
            self._admit(accepted, now)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._accept_some)

    def _admit(self, accepted: socket.socket, now: float) -> None:
        service = self._service
        try:
            peer = peer_of(accepted, sure_of_pid=False)
            admitted = service.admits(peer)
            if not self._pace.take(peer, admitted=admitted, per_s=service.connects_per_s(), now=now):
                self._skip(accepted, peer, admitted, now)
                return
            accepted.setblocking(False)
            if admitted:
                peer = peer_of(accepted)
        except OSError as error:
            accepted.close()
            log.warning("a connection could not be served: %s", error.strerror)
            return
        if admitted:
            task = self._loop.create_task(self._serve(accepted, peer))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
            return
        # An unauthorized peer gets no connection, one error at most: repeated attempts must not keep others waiting.
        with contextlib.suppress(OSError):
            if service.refused(peer):
                accepted.send(encode_error(ErrorCode.FORBIDDEN, forbidden_text(self._service.name, peer), None))
        accepted.close()

    def _skip(self, accepted: socket.socket, peer: Peer, admitted: bool, now: float) -> None:
        if admitted and self._answers.take(peer.uid, now):
            with contextlib.suppress(OSError):
                accepted.send(encode_error(ErrorCode.RATE_LIMITED, _TOO_OFTEN, None), socket.MSG_DONTWAIT)
        accepted.close()
        if self._report_at is None:
            self._report_at = self._loop.call_later(REPORT_EVERY_S, self._report)

    def _report(self) -> None:
        """Hands what exceeded the pace to the service, for its log and its counters."""
        if self._report_at is not None:
            self._report_at.cancel()
            self._report_at = None
        skipped, self._pace.skipped = self._pace.skipped, {}
        for (uid, gid, admitted), times in skipped.items():
            self._service.skipped(Peer(uid, gid, 0), times, admitted=admitted)
        now = self._hub.monotonic()
        if now - self._tidied >= TIDY_EVERY_S:
            self._tidied = now
            self._pace.tidy(now)
            self._answers.forget_full(now)

    async def _serve(self, accepted: socket.socket, peer: Peer) -> None:
        try:
            await self._loop.connect_accepted_socket(partial(Connection, self._hub, self._service, peer), accepted)
        except OSError as error:
            accepted.close()
            log.warning("a connection could not be served: %s", error.strerror)

    async def stop(self) -> None:
        """Stops; new callers wait in the backlog from now on."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)
        self._report()
        if self._serving:
            await asyncio.wait(self._serving)
