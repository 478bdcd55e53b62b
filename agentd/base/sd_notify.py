"""Notices to the service manager (sd_notify(3)). They never make the daemon wait: a manager that is busy stops no verdict."""

import asyncio
import logging
import os
from collections import deque

import sdnotify

log = logging.getLogger(__name__)

RETRY_S = 0.2
MAX_WAITING = 16


class Notices:
    """Sends notices in order; what the manager's socket does not take at once is sent again later.

    Without a service manager nothing is sent.
    """

    def __init__(self) -> None:
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING)
        self._retry: asyncio.TimerHandle | None = None
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        if self._notifier is not None and self._notifier.socket is None:
            self._notifier = None
        if self._notifier is not None:
            # In its debug mode the library tells that the socket is full; else it would keep that to itself.
            self._notifier.debug = True
            self._notifier.socket.setblocking(False)

    def send(self, *lines: str) -> None:
        """Sends a notice, now or as soon as it is taken."""
        if self._notifier is None:
            return
        self._waiting.append("\n".join(lines))
        if self._retry is None:
            self._send_waiting()

    def alive(self) -> None:
        """Feeds the watchdog; there will be another, so this one is not kept."""
        if self._notifier is not None and not self._waiting:
            self._try("WATCHDOG=1")

    def close(self) -> None:
        """Gives the socket back; nothing is sent any more."""
        if self._retry is not None:
            self._retry.cancel()
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _try(self, text: str) -> bool:
        try:
            if self._notifier is not None:
                self._notifier.notify(text)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("the service manager takes no notice: %s", error.strerror)
        return True

    def _send_waiting(self) -> None:
        self._retry = None
        while self._waiting:
            if not self._try(self._waiting[0]):
                self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._send_waiting)
                return
            self._waiting.popleft()
