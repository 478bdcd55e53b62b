"""Gives each process a connection of its own, where a client was made before a fork. Nothing here sends or receives.

A child that wrote to its parent's connection would mix its requests with those of the parent, and either could read the
other's replies.
"""

import os
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from ..bounds import MAX_ID
from ..frames import FrameDecoder

L = TypeVar("L")

_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


# A process id alone is not enough: in a new PID namespace the child may have the number of its parent.
os.register_at_fork(after_in_child=_forked)


class Connection(Generic[L]):
    """A connection to the agent, open or not.

    Attributes:
        lock: held by the call that uses the connection.
        socket: None while there is no connection.
        decoder: cuts what the socket receives.
    """

    def __init__(self, lock: L) -> None:
        self.lock = lock
        self.socket: socket.socket | None = None
        self.decoder = FrameDecoder()
        self._last_id = 0
        self._file = (0, 0)

    def next_id(self) -> int:
        """The id of the next request."""
        self._last_id = self._last_id % MAX_ID + 1
        return self._last_id

    @property
    def last_id(self) -> int:
        """The id of the last request."""
        return self._last_id

    def use(self, sock: socket.socket) -> socket.socket:
        """Keeps a socket that is connected to the agent."""
        self._file = _file_of(sock.fileno())
        self.socket, self.decoder = sock, FrameDecoder()
        return sock

    def drop(self) -> None:
        """Closes the connection."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def leave(self) -> None:
        """Closes this process's descriptor of a connection that another process uses; that one is not disturbed."""
        sock, self.socket = self.socket, None
        if sock is None:
            return
        try:
            inherited = _file_of(sock.fileno()) == self._file
        except OSError:
            inherited = False
        if inherited:
            sock.close()
        else:
            # A daemon that closed all descriptors after its fork may have a file of its own under this number.
            sock.detach()


def _file_of(descriptor: int) -> tuple[int, int]:
    info = os.fstat(descriptor)
    return info.st_dev, info.st_ino


class Connections(Generic[L]):
    """The connection of whichever process asks for it.

    Args:
        lock: makes a lock.
    """

    def __init__(self, lock: Callable[[], L]) -> None:
        self._make = lock
        self._by_process: dict[tuple[int, int], Connection[L]] = {}

    def mine(self) -> Connection[L]:
        """This process's connection."""
        process = (os.getpid(), _forks)
        connection = self._by_process.get(process)
        if connection is None:
            # No lock: one of the parent's may have been held at the fork, and nobody here would release it.
            connection = self._by_process.setdefault(process, Connection(self._make()))
            for other in [key for key in list(self._by_process) if key != process]:
                inherited = self._by_process.pop(other, None)
                if inherited is not None:
                    inherited.leave()
        return connection
