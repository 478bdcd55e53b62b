"""Stands between an agent and a swtpm, as somebody on the bus does: records, changes, repeats, holds back.

It listens on two ports of its own, for data and control. Everything it starts ends with it.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from tests.support.acceptor import Acceptor, end
from tests.support.swtpm import free_port_pair

_HOST = "127.0.0.1"
_PATIENCE_S = 10.0


class Exchange(NamedTuple):
    """A command and its response, whole (Part 1, 18)."""

    command: bytes
    response: bytes

    @property
    def code(self) -> int:
        """TPM2_CC of the command."""
        return int.from_bytes(self.command[6:10], "big")

    @property
    def succeeded(self) -> bool:
        return self.response[6:10] == bytes(4)


def _passed_on(exchange: Exchange) -> bytes:
    return exchange.response


class Relay:
    """A relay to the swtpm whose data port is given. Use it in a `with` block.

    Attributes:
        log: what was exchanged, with the responses as the TPM gave them.
        answer: makes the response that the agent gets.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.port = 0
        self.log: list[Exchange] = []
        self.answer: Callable[[Exchange], bytes] = _passed_on
        self._gate = threading.Event()
        self._gate.set()
        self._held: list[threading.Event] = []
        self._acceptors: list[Acceptor] = []
        self._open: list[socket.socket] = []

    @property
    def tcti(self) -> str:
        return f"swtpm:host={_HOST},port={self.port}"

    def of(self, code: int) -> list[Exchange]:
        """The exchanges of one command, as far as they succeeded."""
        return [exchange for exchange in self.log if exchange.code == code and exchange.succeeded]

    def hold(self) -> None:
        """From now on no response is passed on: the agent waits."""
        self._gate = threading.Event()

    def pass_what_comes(self) -> None:
        """New exchanges are passed on; those that are held stay so until the relay ends, and then break off."""
        self._held.append(self._gate)
        self._gate = threading.Event()
        self._gate.set()

    def __enter__(self) -> Self:
        while not self.port:
            port = free_port_pair()
            with contextlib.suppress(OSError):
                data, control = socket.create_server((_HOST, port)), socket.create_server((_HOST, port + 1))
                self.port = port
        for listener, upstream, carry in ((data, self._upstream, self._data), (control, self._upstream + 1, self._control)):
            acceptor = Acceptor(listener, partial(self._serve, upstream, carry), _PATIENCE_S)
            self._acceptors.append(acceptor)
            acceptor.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for acceptor in self._acceptors:
            acceptor.stopping.set()
        for gate in (self._gate, *self._held):
            gate.set()
        for sock in self._open:
            end(sock)
        for acceptor in self._acceptors:
            acceptor.__exit__()

    def _serve(self, upstream: int, carry: Callable[[socket.socket, socket.socket], None], client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError), socket.create_connection((_HOST, upstream)) as server:
            self._open += [client, server]
            carry(client, server)

    def _data(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            command = _packet(client)
            server.sendall(command)
            exchange = Exchange(command, _packet(server))
            self.log.append(exchange)
            gate = self._gate
            if not gate.is_set():
                server.close()  # a swtpm serves one connection at a time
                gate.wait()
                return
            client.sendall(self.answer(exchange))

    @staticmethod
    def _control(client: socket.socket, server: socket.socket) -> None:
        while data := client.recv(4096):
            server.sendall(data)
            client.sendall(server.recv(4096))


def _packet(stream: socket.socket) -> bytes:
    head = _exactly(stream, 6)
    return head + _exactly(stream, struct.unpack(">I", head[2:])[0] - 6)


def _exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := stream.recv(size - len(data))):
            raise EOFError
        data += more
    return data
