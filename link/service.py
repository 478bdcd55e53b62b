"""Accepts connections from the core only, and ends the process after a while without one."""

import asyncio
import logging
import socket
from collections.abc import Callable

from ipc.linkmessages import LINK_VERSION, MAX_SESSIONS, FailCode, Failed, encode_link
from ipc.peer import peer_of

from .config import LinkConfig
from .session import Session, readable

log = logging.getLogger("link")

ACCEPT_PAUSE_S = 0.2
"""The pause after an accept that failed because descriptors or memory ran out."""
UNAUTHORIZED_LOG_S = 10.0
"""The least time between two log lines about unauthorized users."""


class Service:
    """Serves a listening socket.

    Args:
        listener: non-blocking; stays open.
        config: who may connect, and which upstreams may be reached.
        monotonic: seconds that pass.
        idle_s: seconds without a connection from the core, after which it stops; None to serve forever.
    """

    def __init__(
        self, listener: socket.socket, config: LinkConfig, monotonic: Callable[[], float], idle_s: float | None = None
    ) -> None:
        self._listener = listener
        self._config = config
        self._monotonic = monotonic
        self._idle_s = idle_s
        self._sessions: set[asyncio.Task[None]] = set()
        self._quiet_until = -UNAUTHORIZED_LOG_S

    async def serve(self) -> None:
        """Returns after `idle_s` without a connection. A connection that comes at that moment stays in the socket's queue."""
        last_used = self._monotonic()
        while True:
            limit = None
            if self._idle_s is not None and not self._sessions:
                limit = max(0.0, last_used + self._idle_s - self._monotonic())
            came, ended = await self._next_event(limit)
            for task in ended:
                self._sessions.discard(task)
                if (error := task.exception()) is not None:
                    log.error("an error in the link ended a connection", exc_info=error)
            if (came and await self._accept()) or ended:
                last_used = self._monotonic()
            if not came and not ended:
                log.info("exiting: no connection for %g s", self._idle_s)
                return

    async def _next_event(self, limit: float | None) -> tuple[bool, set[asyncio.Task[None]]]:
        """Waits; returns whether a connection can be accepted, and the sessions that have ended."""
        arrival = asyncio.create_task(readable(self._listener))
        full = len(self._sessions) >= MAX_SESSIONS
        try:
            done, _ = await asyncio.wait(
                self._sessions if full else {arrival, *self._sessions}, timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            arrival.cancel()
            await asyncio.wait({arrival})
        return arrival in done, done & self._sessions

    async def _accept(self) -> bool:
        """Accepts a connection; returns whether it is the core's."""
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            log.error("a connection cannot be accepted: %s", error.strerror)
            await asyncio.sleep(ACCEPT_PAUSE_S)
            return False
        sock.setblocking(False)
        try:
            peer = peer_of(sock, sure_of_pid=False)
        except OSError:
            sock.close()
            return False
        if peer.uid != self._config.core_uid:
            self._turn_away(sock, peer.uid)
            return False
        task = asyncio.create_task(Session(sock, self._config, self._monotonic).run())
        self._sessions.add(task)
        return True

    def _turn_away(self, sock: socket.socket, uid: int) -> None:
        if (now := self._monotonic()) >= self._quiet_until:
            self._quiet_until = now + UNAUTHORIZED_LOG_S
            log.warning("refused a connection from uid %d; only uid %d may use the link's socket", uid, self._config.core_uid)
        refusal = Failed(v=LINK_VERSION, id=0, code=FailCode.NOT_ALLOWED, text="only the agent may use the link's socket")
        with sock:
            try:
                sock.send(encode_link(refusal))
            except OSError:
                return
