"""Receives one open file from a peer, beside the event loop's own reading, which takes bytes alone.

The loop's transports read with read(2), which drops what comes with the bytes. So the connection stops reading before the peer
may send, and one byte with one descriptor is received here, on a duplicate of the socket; then the loop reads on.
"""

import array
import asyncio
import os
import socket
from collections.abc import Callable

HANDOVER_S = 10.0
"""How long a peer may take, seconds: it has the file open already."""


class Handover:
    """Waits for the descriptor.

    Args:
        number: of the connection's socket; stays the connection's.
        done: called once, with the descriptor, which is the callee's from then on; with None if none has come.

    Raises:
        OSError: the socket cannot be duplicated.
    """

    def __init__(self, number: int, done: Callable[[int | None], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = done
        self._sock: socket.socket | None = socket.socket(fileno=os.dup(number))
        self._loop.add_reader(self._sock, self._read)
        self._timer = self._loop.call_later(HANDOVER_S, self._end, None)

    def _read(self) -> None:
        if self._sock is None:
            return
        try:
            # Room for two: of more than one none counts. MSG_DONTWAIT, and not a mode that would be the connection's too.
            data, ancillary, flags, _address = self._sock.recvmsg(
                1, socket.CMSG_SPACE(2 * array.array("i").itemsize), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(None)
            return
        numbers = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
        if data and len(numbers) == 1 and not flags & socket.MSG_CTRUNC:
            self._end(numbers[0])
            return
        for each in numbers:
            os.close(each)
        self._end(None)

    def _end(self, descriptor: int | None) -> None:
        self.close()
        self._done(descriptor)

    def close(self) -> None:
        """Stops waiting; `done` is not called any more."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock)
            sock.close()
            self._timer.cancel()
