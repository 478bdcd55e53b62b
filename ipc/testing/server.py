"""Serves a fake's socket from one thread: bytes to frames to requests, replies in the order of the requests."""

import selectors
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from ..bounds import BACKLOG, DEFAULT_CONNECTIONS_PER_UID, MAX_UNSENT_BYTES
from ..errors import ErrorCode, RemoteProtocolError
from ..frames import FrameDecoder
from .service import encode_error

_READ_BYTES = 65_536


class _Connection:
    """One caller.

    Attributes:
        unsent: replies that it has not taken.
        ending: it is closed once they are sent.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.decoder = FrameDecoder()
        self.unsent = bytearray()
        self.ending = False

    def interest(self) -> int:
        """The events to wait for: nothing more is read while replies wait."""
        reading = 0 if self.ending or len(self.unsent) > MAX_UNSENT_BYTES else selectors.EVENT_READ
        return reading | (selectors.EVENT_WRITE if self.unsent or self.ending else 0)


class Server:
    """A listening Unix socket that outlives stops, as one that systemd holds.

    Args:
        path: of the socket; does not exist yet.
        answer: the reply to a frame's body; raises RemoteProtocolError where the connection ends.

    Raises:
        OSError: the socket cannot be made there.
    """

    def __init__(self, path: Path, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
        except OSError as error:
            self._listener.close()
            raise OSError(error.errno, f"{error.strerror or error}: a socket's path has at most 107 bytes", str(path)) from None
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self._thread: threading.Thread | None = None
        self._bell: socket.socket | None = None

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._thread is not None

    def start(self) -> None:
        """Answers from now on, also those who have waited."""
        if self._thread is None:
            self._bell, ear = socket.socketpair()
            self._thread = threading.Thread(target=self._run, args=(ear,), name="fake license agent", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Closes all connections; new ones wait in the socket's queue."""
        if self._thread is not None and self._bell is not None:
            self._bell.close()
            self._thread.join()
            self._thread = self._bell = None

    def close(self) -> None:
        """Ends it for good."""
        self.stop()
        self._listener.close()

    def _run(self, ear: socket.socket) -> None:
        connections: set[_Connection] = set()
        with selectors.DefaultSelector() as selector, ear:
            selector.register(ear, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            try:
                while True:
                    for key, events in selector.select():
                        if key.fileobj is ear:
                            return
                        if key.fileobj is self._listener:
                            self._accept(selector, connections)
                        elif not self._serve(key.data, events):
                            selector.unregister(key.fileobj)
                            connections.discard(key.data)
                            key.data.sock.close()
                        else:
                            selector.modify(key.fileobj, key.data.interest(), key.data)
            finally:
                for connection in connections:
                    connection.sock.close()

    def _accept(self, selector: selectors.BaseSelector, connections: set[_Connection]) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        connection = _Connection(sock)
        if len(connections) >= DEFAULT_CONNECTIONS_PER_UID:
            connection.unsent += encode_error(
                ErrorCode.RATE_LIMITED, "too many connections; use fewer, or close idle ones", None
            )
            connection.ending = True
        connections.add(connection)
        selector.register(sock, connection.interest(), connection)

    def _serve(self, connection: _Connection, events: int) -> bool:
        """Reads and writes what is possible; whether the connection goes on."""
        try:
            if events & selectors.EVENT_READ:
                data = connection.sock.recv(_READ_BYTES)
                if not data:
                    return False
                self._take(connection, data)
            if connection.unsent:
                sent = connection.sock.send(connection.unsent)
                del connection.unsent[:sent]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return bool(connection.unsent) or not connection.ending

    def _take(self, connection: _Connection, data: bytes) -> None:
        try:
            for body in connection.decoder.receive_data(data):
                connection.unsent += self._answer(body)
            if connection.decoder.error is not None:
                raise connection.decoder.error
        except RemoteProtocolError as error:
            connection.unsent += encode_error(error.code, error.text, None)
            connection.ending = True
