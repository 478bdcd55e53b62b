"""Sends an order to the updater or the installer and reads what they answer. One connection, one order.

What they send is parsed as strictly as hostile input, for the updater reads what comes from a network. Both sockets are
systemd's: it starts the process that answers.
"""

import array
import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentd.uplink.daemons import NoDaemon, connect_to
from common.text import forbidden_in
from ipc.bounds import HEADER_BYTES
from ipc.errors import LocalProtocolError, RemoteProtocolError
from ipc.messages import Request

from .sides import Progress, Unreachable

SILENCE_S = 120.0
"""The other side reports its progress; one that gets no further for so long while a package moves has hung. The same number
again is no progress: a captured updater could keep an update at its step that way, and no deadline would be looked at."""


class OrderClient:
    """Sends orders to one process.

    Args:
        path: its socket.
        who: its name, for errors.
        user: whom it runs as; root's socket is trusted in any case.
        encode: makes the frame of an order.
        decode: reads an answer.
        max_frame: bytes of an answer.
        progress: the type of message that comes any number of times before the answer.
    """

    def __init__(
        self,
        path: Path,
        who: str,
        user: str,
        encode: Callable[[Request], bytes],
        decode: Callable[[bytes], Any],
        max_frame: int,
        progress: type[Any],
    ) -> None:
        self._path = os.fspath(path)
        self._who = who
        self._user = user
        self._encode = encode
        self._decode = decode
        self._max_frame = max_frame
        self._progress = progress

    async def order(
        self, order: Request, silence_s: float = SILENCE_S, progress: Progress | None = None, descriptor: int | None = None
    ) -> Any:
        """The answer to an order.

        Args:
            order: its `id` must be 1.
            silence_s: how long the process may say nothing, or report no progress, seconds.
            progress: called for each report.
            descriptor: goes with the order.

        Raises:
            Unreachable: nobody answers, or not in a form that the protocol has.
        """
        try:
            frame = self._encode(order)
        except LocalProtocolError as error:
            raise Unreachable(f"the {self._who} cannot be asked: {error}") from None
        sock = self._connect()
        try:
            rest = frame[_send(sock, frame, descriptor) :]
            reader, writer = await asyncio.open_unix_connection(sock=sock)
        except OSError as error:
            sock.close()
            raise Unreachable(f"the {self._who} does not accept the order: {error.strerror or error}") from None
        except BaseException:
            sock.close()
            raise
        try:
            writer.write(rest)
            return await self._answer(reader, silence_s, progress)
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, silence_s: float, progress: Progress | None) -> Any:
        loop, most = asyncio.get_running_loop(), -1
        ends = loop.time() + silence_s
        while True:
            try:
                async with asyncio.timeout_at(ends):
                    length = int.from_bytes(await reader.readexactly(HEADER_BYTES), "big")
                    if not 0 < length <= self._max_frame:
                        raise Unreachable(f"the {self._who} sent a frame of {length} bytes")
                    message = self._decode(await reader.readexactly(length))
            except TimeoutError:
                text = "has said nothing" if most < 0 else "got no further"
                raise Unreachable(f"the {self._who} {text} for {silence_s:g} s") from None
            except (asyncio.IncompleteReadError, OSError):
                raise Unreachable(f"the {self._who} broke off; its journal says more") from None
            except RemoteProtocolError as error:
                raise Unreachable(f"the {self._who} sent a malformed message: {clean(error.text)}") from None
            if not isinstance(message, self._progress):
                return message
            if message.done > most:
                most, ends = message.done, loop.time() + silence_s
            if progress is not None:
                progress(message.done, message.total)

    def _connect(self) -> socket.socket:
        try:
            return connect_to(self._path, self._who, self._user)
        except NoDaemon as error:
            raise Unreachable(str(error)) from None


def _send(sock: socket.socket, frame: bytes, descriptor: int | None) -> int:
    """Sends what the kernel takes, with the descriptor before uvloop has the socket; returns how many bytes that was."""
    if descriptor is None:
        return sock.send(frame)
    return sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])


def clean(text: str) -> str:
    """Text that may go to a log and a terminal."""
    return "".join(character if forbidden_in(character) is None else "?" for character in text[:500])
