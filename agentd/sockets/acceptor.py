"""Accepts connections on a listening socket.

Not by the loop's own server: that calls listen(2) again, and on a socket that systemd made this would change whom clients
see as its server, from root to the daemon's user.
"""

import asyncio
import contextlib
import logging
import socket
from functools import partial

from ipc.errors import ErrorCode
from ipc.messages import encode_error
from ipc.peer import Peer, peer_of

from .admission import forbidden_text
from .connection import Connection, Hub, Service

log = logging.getLogger(__name__)

ACCEPTS_PER_TURN = 64
_OUT_OF_FILES_PAUSE_S = 0.1


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
        self._loop.add_reader(sock, self._accept_some)

    def _accept_some(self) -> None:
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
            accepted.setblocking(False)
            self._admit(accepted)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._accept_some)

    def _admit(self, accepted: socket.socket) -> None:
        try:
            peer = peer_of(accepted, sure_of_pid=False)
            admitted = self._service.admits(peer)
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
            if self._service.refused(peer):
                accepted.send(encode_error(ErrorCode.FORBIDDEN, forbidden_text(self._service.name, peer), None))
        accepted.close()

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
        if self._serving:
            await asyncio.wait(self._serving)
