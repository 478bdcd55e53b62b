"""Accepts connections in a thread and serves each in one of its own, as the relays, peers and links of the tests do."""

import contextlib
import socket
import threading
from collections.abc import Callable


class Acceptor:
    """Serves a listening socket for the length of a `with` block.

    Args:
        listener: is closed at the end.
        serve: gets each connection, in a thread of its own, and closes it.
        patience_s: how long each thread may take to end once the block has ended.

    Attributes:
        port: of the listener, if it is of TCP; else 0.
        stopping: set at the end of the block; what serves a connection may wait for it.
    """

    def __init__(self, listener: socket.socket, serve: Callable[[socket.socket], None], patience_s: float) -> None:
        self._listener = listener
        self._serve = serve
        self._patience_s = patience_s
        self._threads: list[threading.Thread] = []
        self.stopping = threading.Event()
        self.port: int = listener.getsockname()[1] if listener.family == socket.AF_INET else 0

    def __enter__(self) -> "Acceptor":
        self._listener.settimeout(0.05)
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(self._patience_s)
        self._listener.close()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                self._start(self._serve, connection)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


def end(sock: socket.socket) -> None:
    """Ends both directions of a connection, also one that has ended."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def pump(source: socket.socket, sink: socket.socket, note: Callable[[bytes], None] = lambda _data: None) -> None:
    """Carries bytes until the source has no more or the connection fails, and then ends the sink's input.

    Args:
        source: read from.
        sink: written to.
        note: gets each piece before it is carried; what it raises, but OSError, ends the pump.
    """
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            note(data)
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
