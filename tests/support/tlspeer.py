"""A TLS server and an HTTP proxy on loopback that behave as a test says, and keep a record of what reached them."""

import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.acceptor import Acceptor, pump
from tests.support.pki import Entity
from tests.support.waiting import READY_S, wait_until


@dataclass
class Record:
    """What one connection showed.

    Attributes:
        handshake: whether it was finished on the server's side; `error` says why not.
        received: plain bytes of requests.
        client: SHA-256 of the client certificate in hex, None if none came.
        sent: bytes of answers that the kernel took.
    """

    handshake: bool = False
    error: str = ""
    received: bytes = b""
    client: str | None = None
    sent: int = 0
    done: threading.Event = field(default_factory=threading.Event)


class Exchange:
    """A connection after its handshake, as a behavior sees it."""

    def __init__(self, connection: ssl.SSLSocket, record: Record, stopping: threading.Event) -> None:
        self.connection = connection
        self.record = record
        self.stopping = stopping

    def request(self) -> bytes:
        """The next request, head and body; empty at the end."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (piece := self.connection.recv(65536)):
                return b""
            data += piece
            self.record.received += piece
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line.partition(b":")[2]):
                    piece = self.connection.recv(65536)
                    body += piece
                    self.record.received += piece
        return head + b"\r\n\r\n" + body

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.record.sent += len(data)

    def pause(self, seconds: float) -> bool:
        """Waits; False once the server is being stopped."""
        return not self.stopping.wait(seconds)


Behavior = Callable[[Exchange], None]


def answer(body: bytes = b"hello", status: str = "200 OK", headers: str = "") -> Behavior:
    """Answers every request of the connection alike."""

    def behave(exchange: Exchange) -> None:
        while exchange.request():
            exchange.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)

    return behave


def raw(data: bytes) -> Behavior:
    """Answers the first request with these bytes and closes."""

    def behave(exchange: Exchange) -> None:
        exchange.request()
        exchange.send(data)

    return behave


class TlsPeer:
    """A server on a free port of 127.0.0.1, for the length of a `with` block.

    Args:
        directory: for its key and certificate.
        entity: who it is; may be changed between connections.
        behavior: what it does after the handshake.
        client_ca: whose client certificates it demands.
        version: the only version of TLS that it speaks.

    Attributes:
        records: one for each connection, in the order of their coming.
    """

    def __init__(
        self,
        directory: Path,
        entity: Entity,
        behavior: Behavior | None = None,
        client_ca: Entity | None = None,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> None:
        self._directory = directory
        self.entity = entity
        self.behavior = behavior or answer()
        self._client_ca = client_ca
        self._version = version
        self.records: list[Record] = []
        self._files = threading.Lock()
        self._acceptor = Acceptor(socket.create_server(("127.0.0.1", 0)), self._serve, READY_S)
        self.port = self._acceptor.port

    def __enter__(self) -> "TlsPeer":
        self._acceptor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._acceptor.__exit__()

    def wait_for_a_connection(self) -> None:
        """Returns when the first connection has come."""
        wait_until(lambda: self.records, "no connection has come")

    def last(self) -> Record:
        """The last connection's record, once that connection has ended."""
        record = self.records[-1]
        assert record.done.wait(READY_S), "the connection has not ended"
        return record

    def _context(self) -> ssl.SSLContext:
        chain, key = self._directory / "peer.pem", self._directory / "peer.key"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = self._version
        with self._files:  # each connection has a thread
            chain.write_text(self.entity.chain_pem)
            key.write_bytes(self.entity.key_pem)
            context.load_cert_chain(chain, key)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
            # The certificates of these tests live around another time than today.
            context.verify_flags |= 0x200000  # X509_V_FLAG_NO_CHECK_TIME
            context.load_verify_locations(cadata=self._client_ca.chain_pem)
        return context

    def _serve(self, connection: socket.socket) -> None:
        record = Record()
        self.records.append(record)
        connection.settimeout(READY_S)
        try:
            with connection, self._context().wrap_socket(connection, server_side=True) as secured:
                record.handshake = True
                if certificate := secured.getpeercert(binary_form=True):
                    record.client = _fingerprint(certificate)
                self.behavior(Exchange(secured, record, self._acceptor.stopping))
        except OSError as error:
            record.error = str(error)
        finally:
            record.done.set()


def _fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


class Proxy:
    """An HTTP proxy that makes tunnels to loopback, or refuses to.

    Args:
        status: what it answers to CONNECT instead of making a tunnel; None to make it.

    Attributes:
        asked: first lines of the requests.
        carried: bytes that went through the tunnels from the client.
    """

    def __init__(self, status: bytes | None = None) -> None:
        self._status = status
        self.asked: list[bytes] = []
        self.carried = b""
        self._acceptor = Acceptor(socket.create_server(("127.0.0.1", 0)), self._serve, READY_S)
        self.port = self._acceptor.port

    def __enter__(self) -> "Proxy":
        self._acceptor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._acceptor.__exit__()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(READY_S)
        with connection, contextlib.suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                if not (piece := connection.recv(4096)):
                    return
                data += piece
            line = data.split(b"\r\n", 1)[0]
            self.asked.append(line)
            if self._status is not None:
                connection.sendall(self._status)
                return
            port = int(line.split(b" ")[1].rpartition(b":")[2])
            with socket.create_connection(("127.0.0.1", port), READY_S) as onward:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(onward, connection), daemon=True)
                back.start()
                pump(connection, onward, self._carry)
                back.join(READY_S)

    def _carry(self, data: bytes) -> None:
        self.carried += data
