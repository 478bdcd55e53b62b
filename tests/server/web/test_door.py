"""A flood of connections from one address: what it holds, and that an agent is served beside it. Real sockets, real TLS."""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.base.limits import MAX_ANONYMOUS_ADDRESS, MAX_HANDSHAKES_ADDRESS
from server.web import door, transport
from server.web.listeners import tcp_socket
from server.web.tlscontext import server_context
from tests.server.web.test_transport import CA, CLIENT, Running, exchange, post
from tests.support.clientpki import client_context, leaf
from tests.support.waiting import READY_S, wait_until

pytestmark = pytest.mark.system

FLOOD = 300
"""Connections of an attacker: more than a bucket of handshakes would let through without the limit on those that are held."""


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server whose deadlines help nobody here: an attacker connects again and again."""
    monkeypatch.setattr(door, "HANDSHAKE_DEADLINE_S", 3600)
    monkeypatch.setattr(transport, "REQUEST_DEADLINE_S", 3600)
    identity = leaf(CA, "server", server=True)
    made = Running(tcp_socket("127.0.0.1", 0, "bind"), server_context(identity.pem + CA.pem, identity.key_pem, CA.pem))
    yield made
    made.stop()


@contextlib.contextmanager
def connections(port: int, source: str, tls: bool) -> Iterator[list[socket.socket]]:
    """The attacker's: each sends nothing, or has shaken hands and then sends nothing."""
    with contextlib.ExitStack() as stack:
        context, held = client_context(CA.pem), []
        for _ in range(FLOOD):
            raw: socket.socket = socket.create_connection(("127.0.0.1", port), READY_S, (source, 0))
            with contextlib.suppress(OSError):
                held.append(stack.enter_context(context.wrap_socket(raw) if tls else raw))
        yield held


def still_open(sock: socket.socket) -> bool:
    sock.settimeout(0.0)
    try:
        return sock.recv(1) != b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False


def contact(port: int, source: str, files: tuple[str, str]) -> float:
    """Seconds that a contact of an agent takes: connection, handshake, one request."""
    began = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", port), READY_S, (source, 0)) as raw,
        client_context(CA.pem, files).wrap_socket(raw) as sock,
    ):
        assert exchange(sock, post(b"{}"))[0] == 200
    return time.monotonic() - began


@pytest.mark.parametrize(("tls", "limit"), [(False, MAX_HANDSHAKES_ADDRESS), (True, MAX_ANONYMOUS_ADDRESS)])
def test_one_address_holds_few_connections_and_an_agent_is_served_beside_it(
    running: Running, tmp_path: Path, tls: bool, limit: int
) -> None:
    port, files = running.port, CLIENT.files(tmp_path, "client")
    with connections(port, "127.0.0.2", tls) as flood:
        assert len(flood) == FLOOD
        wait_until(lambda: sum(map(still_open, flood)) <= limit, "the address holds more than its share")
        for source in ("127.0.0.1", "127.0.0.2"):
            assert contact(port, source, files) < READY_S
        assert sum(map(still_open, flood)) <= limit


def test_an_agent_keeps_its_connection_while_others_are_closed(running: Running, tmp_path: Path) -> None:
    files = CLIENT.files(tmp_path, "client")
    with (
        socket.create_connection(("127.0.0.1", running.port), READY_S, ("127.0.0.2", 0)) as raw,
        client_context(CA.pem, files).wrap_socket(raw) as agent,
    ):
        assert exchange(agent, post(b"{}"))[0] == 200
        with connections(running.port, "127.0.0.2", True):
            assert exchange(agent, post(b"{}"))[0] == 200
