"""Accepts connections from core and updater only, gives each a process of its own, and ends after a while without one.

A session's process is forked for it and ends with it. OpenSSL and Python leave copies of a TLS client key in memory that they
have freed, and nothing finds them all; the kernel takes the memory of a process back whole. This process never sees a key: it
accepts and forks before anything is read.
"""

import asyncio
import ctypes
import gc
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import NoReturn

from common.logqueue import RETRY_S, LogQueue
from ipc.linkmessages import LINK_VERSION, MAX_SESSIONS, FailCode, Failed, encode_link
from ipc.peer import peer_of

from .clients import Client, client_of
from .config import LinkConfig
from .session import Session

log = logging.getLogger("link")

ACCEPT_PAUSE_S = 0.2
"""The pause after an accept that failed because descriptors or memory ran out."""
UNAUTHORIZED_LOG_S = 10.0
"""The least time between two log lines about unauthorized users."""
_PR_SET_PDEATHSIG = 1


class Service:
    """Serves a listening socket.

    Args:
        listener: non-blocking; stays open.
        config: who may connect, and which upstreams may be reached.
        monotonic: seconds that pass.
        lines: the log of this process and of those that it forks.
        idle_s: seconds without a connection from one of them, after which it stops; None to serve forever.
    """

    def __init__(
        self,
        listener: socket.socket,
        config: LinkConfig,
        monotonic: Callable[[], float],
        lines: LogQueue,
        idle_s: float | None = None,
    ) -> None:
        self._listener = listener
        self._config = config
        self._monotonic = monotonic
        self._lines = lines
        self._idle_s = idle_s
        # The end of a pipe that closes when a session's process ends; that process, and whom it serves.
        self._sessions: dict[int, tuple[int, Client]] = {}
        self._quiet_until = -UNAUTHORIZED_LOG_S

    def serve(self) -> None:
        """Returns after `idle_s` without a connection. A connection that comes at that moment stays in the socket's queue.

        No event loop may run in this thread, and no other thread: it forks.
        """
        gc.collect()
        gc.freeze()  # so that the collector does not write to the pages that the sessions share with this process
        last_used = self._monotonic()
        while True:
            limit = None
            if self._idle_s is not None and not self._sessions:
                limit = max(0.0, last_used + self._idle_s - self._monotonic())
            if not self._lines.flow() and (limit is None or limit > RETRY_S):
                came, ended = self._next_event(RETRY_S)
                if not came and not ended:
                    continue
            else:
                came, ended = self._next_event(limit)
            for end in ended:
                self._reap(end)
            if (came and self._accept()) or ended:
                last_used = self._monotonic()
            if not came and not ended:
                log.info("exiting: no connection for %g s", self._idle_s)
                return

    def _next_event(self, limit: float | None) -> tuple[bool, list[int]]:
        """Waits; returns whether a connection can be accepted, and the sessions that have ended."""
        with selectors.DefaultSelector() as selector:
            for end in self._sessions:
                selector.register(end, selectors.EVENT_READ)
            if len(self._sessions) < MAX_SESSIONS:
                selector.register(self._listener, selectors.EVENT_READ)
            ready = [key.fd for key, _ in selector.select(limit)]
        return self._listener.fileno() in ready, [end for end in ready if end in self._sessions]

    def _reap(self, end: int) -> None:
        pid, _ = self._sessions.pop(end)
        os.close(end)
        _, status = os.waitpid(pid, 0)
        if (code := os.waitstatus_to_exitcode(status)) < 0:
            log.error("a connection's process was ended by signal %d", -code)

    def _accept(self) -> bool:
        """Accepts a connection; returns whether it is served."""
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            log.error("a connection cannot be accepted: %s", error.strerror)
            time.sleep(ACCEPT_PAUSE_S)
            return False
        with sock:
            sock.setblocking(False)
            try:
                peer = peer_of(sock, sure_of_pid=False)
            except OSError:
                return False
            client = client_of(peer.uid, self._config)
            if client is None:
                self._turn_away(sock, f"uid {peer.uid}", "only the agent may use the link's socket")
                return False
            if sum(served is client for _, served in self._sessions.values()) >= client.sessions:
                self._turn_away(sock, client.name, f"{client.name} has {client.sessions} connections already")
                return False
            return self._fork(sock, client)

    def _fork(self, sock: socket.socket, client: Client) -> bool:
        """Serves the connection in a process of its own; returns whether there is one."""
        end, held = os.pipe()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            log.error("no process for a connection: %s", error.strerror)
            os.close(end)
            os.close(held)
            time.sleep(ACCEPT_PAUSE_S)
            return False
        if pid == 0:
            self._session(sock, client, parent)
        os.close(held)
        self._sessions[end] = pid, client
        return True

    def _session(self, sock: socket.socket, client: Client, parent: int) -> NoReturn:
        """The life of a session's process. It serves nobody else, and does not outlive the one that forked it."""
        status = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == parent:
                self._lines.forget()
                self._listener.close()
                asyncio.run(self._serve_one(sock, client))
                status = 0
        except BaseException:  # this process has no caller that could hear of it, only its log
            log.exception("an error in the link ended a connection")
        finally:
            self._lines.finish()
            os._exit(status)

    async def _serve_one(self, sock: socket.socket, client: Client) -> None:
        flowing = asyncio.create_task(self._lines.keep_flowing(asyncio.sleep))
        try:
            await Session(sock, self._config, client, self._monotonic).run()
        finally:
            flowing.cancel()

    def _turn_away(self, sock: socket.socket, who: str, why: str) -> None:
        if (now := self._monotonic()) >= self._quiet_until:
            self._quiet_until = now + UNAUTHORIZED_LOG_S
            core, updater = self._config.core_uid, self._config.updater_uid
            users = f"uid {core}" if updater is None else f"uid {core} and, for updates, uid {updater}"
            log.warning("refused a connection from %s: %s; %s may use it", who, why, users)
        refusal = Failed(v=LINK_VERSION, id=0, code=FailCode.NOT_ALLOWED, text=why)
        try:
            sock.send(encode_link(refusal))
        except OSError:
            return
