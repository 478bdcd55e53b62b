"""Stands between an agent and a swtpm, as somebody on the bus does: records, changes, repeats, holds back.

It listens on two ports of its own, for data and control. Everything it starts ends with it.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from tests.support.swtpm import free_port_pair

_HOST = "127.0.0.1"


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
        self._ended = False
        self._sockets: list[socket.socket] = []

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
        while not self._sockets:
            port = free_port_pair()
            with contextlib.suppress(OSError):
                listeners = [socket.create_server((_HOST, port)), socket.create_server((_HOST, port + 1))]
                self.port, self._sockets = port, list(listeners)
        for listener, upstream, serve in (
            (self._sockets[0], self._upstream, self._data),
            (self._sockets[1], self._upstream + 1, self._control),
        ):
            threading.Thread(target=self._accept, args=(listener, upstream, serve), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended = True
        for gate in (self._gate, *self._held):
            gate.set()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket, upstream: int, serve: Callable[[socket.socket, socket.socket], None]) -> None:
        with contextlib.suppress(OSError):
            while not self._ended:
                client = listener.accept()[0]
                server = socket.create_connection((_HOST, upstream))
                self._sockets += [client, server]
                threading.Thread(target=self._serve, args=(serve, client, server), daemon=True).start()

    @staticmethod
    def _serve(serve: Callable[[socket.socket, socket.socket], None], client: socket.socket, server: socket.socket) -> None:
        with client, server, contextlib.suppress(OSError, EOFError):
            serve(client, server)

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
