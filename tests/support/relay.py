"""A TCP relay on loopback between link and server. It sees TLS records only, and so counts who talks when.

On each connection the two sides take turns. Turns are numbered from 1: turn 1 of the client is its ClientHello, turn 2 the end
of its handshake with the first request, turn n + 1 its n-th request. Turn 1 of the server is its handshake, turn n + 1 its n-th
answer (it sends nothing between handshake and first answer: it gives no session tickets).
"""

import itertools
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.support.acceptor import Acceptor, end
from tests.support.waiting import READY_S

Side = Literal["client", "server"]


class Cut(Exception):
    """Raised by a rule: both sides lose the connection, and what was about to be carried is dropped."""


@dataclass(frozen=True)
class Turn:
    """A side begins to talk.

    Attributes:
        connection: which one, from 1.
        side: who talks.
        number: its turn on this connection, from 1.
    """

    connection: int
    side: Side
    number: int


class Relay:
    """Carries connections to `target`, for the length of a `with` block.

    Attributes:
        port: where it listens, on 127.0.0.1.
        target: port of the server behind it; may be changed.
        rule: told each turn before its first byte is carried. It may wait, or raise `Cut`.
        turns: all turns so far.
    """

    def __init__(self) -> None:
        self.target = 0
        self.rule: Callable[[Turn], None] | None = None
        self.turns: list[Turn] = []
        self._open: list[socket.socket] = []
        self._count = itertools.count(1)
        self._acceptor = Acceptor(socket.create_server(("127.0.0.1", 0)), self._carry, READY_S)
        self.port = self._acceptor.port

    def __enter__(self) -> "Relay":
        self._acceptor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._acceptor.stopping.set()
        self.cut()
        self._acceptor.__exit__()

    def cut(self) -> None:
        """Ends all connections that are open."""
        for sock in list(self._open):
            end(sock)

    def once(self, side: Side, number: int, act: Callable[[], None]) -> None:
        """Sets a rule: at that turn, on whatever connection it comes first, `act` is called once."""
        done = threading.Event()

        def rule(turn: Turn) -> None:
            if (turn.side, turn.number) == (side, number) and not done.is_set():
                done.set()
                act()

        self.rule = rule

    def _carry(self, client: socket.socket) -> None:
        connection = next(self._count)
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self.target), READY_S)
            except OSError:
                return
            with server:
                client.settimeout(READY_S)
                self._open += [client, server]
                conversation = _Conversation(self, connection)
                back = threading.Thread(target=conversation.pump, args=("server", server, client), daemon=True)
                back.start()
                conversation.pump("client", client, server)
                back.join(READY_S)
                for sock in (client, server):
                    self._open.remove(sock)

    def begins(self, turn: Turn) -> None:
        """A side begins to talk: notes it, and asks the rule."""
        self.turns.append(turn)
        if self.rule is not None:
            self.rule(turn)


class _Conversation:
    """One connection: who talks, and how often each has begun to."""

    def __init__(self, relay: Relay, connection: int) -> None:
        self._relay = relay
        self._connection = connection
        self._lock = threading.Lock()
        self._talks: Side | None = None
        self._turns: dict[Side, int] = {"client": 0, "server": 0}

    def pump(self, side: Side, source: socket.socket, sink: socket.socket) -> None:
        """Carries what a side says until it has nothing more to say, or the connection is cut."""
        try:
            while data := source.recv(65536):
                turn = self._begun(side)
                if turn is not None:
                    self._relay.begins(turn)
                sink.sendall(data)
        except Cut:
            end(source)
        except OSError:
            pass
        end(sink)

    def _begun(self, side: Side) -> Turn | None:
        with self._lock:
            if self._talks == side:
                return None
            self._talks = side
            self._turns[side] += 1
            return Turn(self._connection, side, self._turns[side])
