"""Sends notices to systemd (sd_notify(3)) without making their sender wait: a busy service manager delays no verdict."""

import asyncio
import logging
import os
import socket
from collections import deque

log = logging.getLogger(__name__)

RETRY_S = 0.2
MAX_WAITING = 16


class Notifier:
    """A connection to the notification socket that the environment names. Without one, nothing is sent."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        address = os.environ.get("NOTIFY_SOCKET", "")
        if not address:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            sock.close()
            log.warning("the service manager's socket %s cannot be used: %s", address, error.strerror or error)
            return
        self._socket = sock

    def __bool__(self) -> bool:
        """Whether notices go anywhere."""
        return self._socket is not None

    def send(self, text: str) -> bool:
        """Sends assignments such as `READY=1`, separated by newlines, as one datagram.

        Returns:
            False if the socket's queue has no room now; a notice that fails otherwise is logged and lost.
        """
        try:
            if self._socket is not None:
                self._socket.send(text.encode())
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("the service manager did not take a notice: %s", error.strerror or error)
        return True

    def close(self) -> None:
        """Closes the socket; later notices go nowhere."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Notices:
    """Sends notices in order from an event loop; one for which the socket has no room is sent again later."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING)
        self._retry: asyncio.TimerHandle | None = None
        self._notifier = Notifier()

    def send(self, *lines: str) -> None:
        """Sends a notice now, or as soon as there is room for it."""
        if not self._notifier:
            return
        self._waiting.append("\n".join(lines))
        if self._retry is None:
            self._send_waiting()

    def alive(self) -> None:
        """Feeds the watchdog; this notice is not kept, since the next one says the same."""
        if not self._waiting:
            self._notifier.send("WATCHDOG=1")

    def last(self, text: str) -> None:
        """Sends a notice if there is room for it now, without an event loop; then closes."""
        self._notifier.send(text)
        self.close()

    def close(self) -> None:
        """Closes the socket; later notices go nowhere."""
        if self._retry is not None:
            self._retry.cancel()
        self._notifier.close()

    def _send_waiting(self) -> None:
        self._retry = None
        while self._waiting:
            if not self._notifier.send(self._waiting[0]):
                self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._send_waiting)
                return
            self._waiting.popleft()
