"""The peer certificate reaches the application; TLS is what it must be; slow and large requests end. Real sockets, real TLS.

What is tested here is also what we use of uvicorn's own classes: an upgrade that breaks it fails here.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from server.base import limits
from server.base.errors import RegistryError
from server.base.limits import MAX_BODY_BYTES
from server.web import transport
from server.web.callers import FromProxy, from_tls
from server.web.listeners import Chore, Listener, host_and_port, remove_socket, run, tcp_socket, unix_socket
from server.web.middleware import CALLER, Middleware, Note
from server.web.tlscontext import load_identity, server_context
from server.web.transport import ApiProtocol
from tests.support.clientpki import Identity, authority, client_context, leaf
from tests.support.waiting import READY_S, wait_until

pytestmark = pytest.mark.system

CA = authority()
CLIENT = leaf(CA, "pos-1")
from_proxy = FromProxy(lambda: CA.pem)


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Tells who was seen, and how long the body was."""
    if scope["path"] == "/boom":
        raise ValueError("a token that must not be logged")
    caller, size = scope["extensions"][CALLER], len((await receive())["body"])
    content = {"fingerprint": caller.peer and caller.peer.fingerprint, "address": caller.address, "size": size}
    if caller.outside is not None:
        content["outside"] = caller.outside.fingerprint
    body = json.dumps(content).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Running:
    """A server in a thread."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        self.seen: list[tuple[int, str | None]] = []
        middleware = Middleware(echo, from_tls if context else from_proxy, self._observe)
        self.context = context
        self.port = sock.getsockname()[1] if context else 0
        self.server = Listener(middleware, sock, ApiProtocol, context)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        wait_until(lambda: self.server.listening, "the server does not listen", lives=self.thread.is_alive, pause_s=0.005)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self.server.serve())

    def _observe(self, scope: dict[str, Any], note: Note, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.seen.append((status, note.code))

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(READY_S)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def tls() -> Iterator[tuple[Running, int]]:
    identity = leaf(CA, "server", server=True)
    sock = tcp_socket("127.0.0.1", 0, "bind")
    running = Running(sock, server_context(identity.pem + CA.pem, identity.key_pem, CA.pem))
    yield running, sock.getsockname()[1] if sock.fileno() >= 0 else 0
    running.stop()


def connect(port: int, files: tuple[str, str] | None = None, version: ssl.TLSVersion | None = None) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=READY_S)
    try:
        return client_context(CA.pem, files, version).wrap_socket(raw)
    except BaseException:
        raw.close()
        raise


def exchange(sock: socket.socket, request: bytes) -> tuple[int, bytes]:
    """Sends a request and reads one response."""
    with contextlib.suppress(OSError):  # the server may refuse before all is sent
        sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65_536)
        if not piece:
            raise ConnectionResetError
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    size = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < size:
        body += sock.recv(65_536)
    return int(head.split()[1]), body


def post(body: bytes, *headers: str, path: str = "/x") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: h",
        f"Content-Length: {len(body)}",
        *(headers or ("Content-Type: application/json",)),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def fingerprint(identity: Identity) -> str:
    from cryptography.hazmat.primitives.hashes import SHA256

    return identity.certificate.fingerprint(SHA256()).hex()


def test_the_certificate_reaches_the_application_on_every_request(tls: tuple[Running, int], tmp_path: Path) -> None:
    with connect(tls[1], CLIENT.files(tmp_path, "client")) as sock:
        for _ in range(3):
            status, body = exchange(sock, post(b"{}"))
            assert status == 200
            assert json.loads(body) == {"fingerprint": fingerprint(CLIENT), "address": "127.0.0.1", "size": 2}
        assert sock.version() == "TLSv1.3"


def test_a_connection_without_a_certificate_is_nobody(tls: tuple[Running, int]) -> None:
    with connect(tls[1]) as sock:
        status, body = exchange(sock, post(b"{}", "Content-Type: application/json", f"Client-Certificate: {CLIENT.pem[:40]!r}"))
        assert status == 200 and json.loads(body)["fingerprint"] is None


@pytest.mark.parametrize("kind", ["other CA", "server's", "other CA, expired"])
def test_a_certificate_that_does_not_count_ends_the_handshake(tls: tuple[Running, int], tmp_path: Path, kind: str) -> None:
    bad = {
        "other CA": lambda: leaf(authority(), "pos-1"),
        "other CA, expired": lambda: leaf(authority(), "pos-1", begins_h=-3, ends_h=-1),
        "server's": lambda: leaf(CA, "pos-1", server=True),
    }[kind]()
    files = bad.files(tmp_path, "bad")
    # In TLS 1.3 the client learns of it when it reads.
    with pytest.raises((ssl.SSLError, ConnectionError)), connect(tls[1], files) as sock:
        exchange(sock, post(b"{}"))


@pytest.mark.parametrize("hours", [(-3, -1), (1, 2)], ids=["expired", "not yet valid"])
def test_a_certificate_outside_its_dates_is_told_apart_for_each_request(
    tls: tuple[Running, int], tmp_path: Path, hours: tuple[int, int]
) -> None:
    client = leaf(CA, "pos-1", begins_h=hours[0], ends_h=hours[1])
    with connect(tls[1], client.files(tmp_path, "client")) as sock:
        _status, body = exchange(sock, post(b"{}", "Content-Type: application/json"))
    seen = json.loads(body)
    assert (seen["fingerprint"], seen["outside"]) == (None, fingerprint(client))


def test_nothing_below_tls_1_3(tls: tuple[Running, int]) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(tls[1], version=ssl.TLSVersion.TLSv1_2)


def test_no_session_is_resumed(tls: tuple[Running, int], tmp_path: Path) -> None:
    with connect(tls[1], CLIENT.files(tmp_path, "client")) as sock:
        exchange(sock, post(b"{}"))
        assert sock.session is None or not sock.session.has_ticket


def test_the_chain_is_sent_up_to_the_root(tls: tuple[Running, int]) -> None:
    from cryptography import x509

    with connect(tls[1]) as sock:
        chain = sock._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
        last = x509.load_pem_x509_certificate(chain[-1].public_bytes().encode())
    assert len(chain) == 2 and last == CA.certificate


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_bounded_while_it_is_read(tls: tuple[Running, int], chunked: bool) -> None:
    size = MAX_BODY_BYTES + 1
    if chunked:
        head = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        request = head + b"1000\r\n" + b"x" * 4096 + b"\r\n"
        with connect(tls[1]) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(request)
                for _ in range(17):
                    sock.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            assert exchange(sock, b"")[0] == 413
    else:
        with connect(tls[1]) as sock:
            assert exchange(sock, post(b"x" * size))[0] == 413
    with connect(tls[1]) as sock:
        assert exchange(sock, post(b"x" * (size - 1)))[0] == 200


def test_a_length_of_many_digits_is_too_large(tls: tuple[Running, int]) -> None:
    with connect(tls[1]) as sock:
        head = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 1" + b"0" * 18 + b"\r\n\r\n"
        assert exchange(sock, head)[0] == 413


@pytest.mark.parametrize("kind", ["text/plain", "application/json; charset=latin-1", "application/jsonx", None])
def test_another_content_type_is_refused(tls: tuple[Running, int], kind: str | None) -> None:
    with connect(tls[1]) as sock:
        assert exchange(sock, post(b"{}", "X: y" if kind is None else f"Content-Type: {kind}"))[0] == 415


def test_what_fails_in_the_application_is_told_without_its_text(
    tls: tuple[Running, int], caplog: pytest.LogCaptureFixture
) -> None:
    with connect(tls[1]) as sock:
        status, body = exchange(sock, post(b"{}", path="/boom"))
    assert status == 500 and json.loads(body)["error"]["code"] == "unavailable"
    assert "must not be logged" not in caplog.text and b"must not" not in body


def test_a_new_certificate_counts_from_the_next_connection_on(tls: tuple[Running, int]) -> None:
    running, port = tls
    with connect(port) as before:
        first = before.getpeercert(binary_form=True)
        identity = leaf(CA, "server", server=True)
        assert running.context is not None
        load_identity(running.context, identity.pem + CA.pem, identity.key_pem)
        with connect(port) as after:
            assert after.getpeercert(binary_form=True) != first
        assert exchange(before, post(b"{}"))[0] == 200


def test_a_server_says_that_it_listens_once_it_does() -> None:
    sock = tcp_socket("127.0.0.1", 0, "bind")
    server = Listener(Middleware(echo, from_proxy, lambda *_: None), sock, ApiProtocol, None)
    early: list[bool] = []

    class Loop(asyncio.SelectorEventLoop):
        async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:
            early.append(server.listening)
            return await super().create_server(*arguments, **options)

    async def scenario() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.listening:
            await asyncio.sleep(0)
        _, writer = await asyncio.open_connection(*sock.getsockname())
        writer.close()
        server.should_exit = True
        await serving

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(scenario())
    assert early == [False]


@pytest.mark.parametrize("sent", [b"", b"POST /x HT", post(b"{}")[:-1]])
def test_a_slow_request_is_cut_off(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REQUEST_DEADLINE_S", 0.3)
    sock = tcp_socket("127.0.0.1", 0, "bind")
    port = sock.getsockname()[1]
    running = Running(sock, server_context((me := leaf(CA, "server", server=True)).pem, me.key_pem, CA.pem))
    try:
        with connect(port) as client:
            client.sendall(sent)
            with contextlib.suppress(OSError):
                assert client.recv(100) == b""
        with connect(port) as client:
            assert exchange(client, post(b"{}"))[0] == 200
    finally:
        running.stop()


def test_connections_above_the_ceiling_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 2)
    sock = tcp_socket("127.0.0.1", 0, "bind")
    port = sock.getsockname()[1]
    running = Running(sock, server_context((me := leaf(CA, "server", server=True)).pem, me.key_pem, CA.pem))
    try:
        with connect(port) as first, connect(port) as second:
            assert exchange(first, post(b"{}"))[0] == 200 and exchange(second, post(b"{}"))[0] == 200
            with pytest.raises(OSError), connect(port) as third:
                exchange(third, post(b"{}"))
    finally:
        running.stop()


def test_behind_a_proxy_the_certificate_comes_from_its_header(tmp_path: Path) -> None:
    from urllib.parse import quote

    path = tmp_path / "api.sock"
    running = Running(unix_socket(path), None)
    assert path.stat().st_mode & 0o777 == 0o660
    escaped = quote(CLIENT.pem)
    try:
        for headers, want in [
            ((f"Client-Certificate: {escaped}", "Client-Address: 192.0.2.1"), (200, fingerprint(CLIENT), "192.0.2.1")),
            (("Client-Address: 192.0.2.1",), (200, None, "192.0.2.1")),
            (("Client-Certificate: rubbish",), (400, None, "")),
            ((f"Client-Certificate: {escaped}", f"Client-Certificate: {escaped}"), (400, None, "")),
            ((f"Client-Certificate: {quote(leaf(authority(), 'pos-1').pem)}",), (401, None, "")),
            ((f"Client-Certificate: {quote(CA.pem)}",), (401, None, "")),
            ((f"Client-Certificate: {quote(leaf(CA, 'pos-1', server=True).pem)}",), (401, None, "")),
            ((f"Client-Certificate: {quote(leaf(CA, 'pos-1', begins_h=-3, ends_h=-1).pem)}",), (200, None, "")),
        ]:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(READY_S)
                sock.connect(str(path))
                status, body = exchange(sock, post(b"{}", "Content-Type: application/json", *headers))
            content = json.loads(body)
            assert (status, content.get("fingerprint"), content.get("address", "")) == want
    finally:
        running.stop()


def test_a_proxy_is_believed_on_a_unix_socket_only() -> None:
    scope = {"server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2), "headers": [(b"client-certificate", b"x")]}
    with pytest.raises(ValueError, match="Unix socket"):
        asyncio.run(from_proxy(scope))
    assert asyncio.run(from_tls(scope))[0] is None


def test_a_certificate_that_ends_while_the_connection_is_open_counts_no_more(tmp_path: Path) -> None:
    at = [CLIENT.certificate.not_valid_after_utc.timestamp()]
    sock = tcp_socket("127.0.0.1", 0, "bind")
    port = sock.getsockname()[1]
    running = Running(sock, server_context((me := leaf(CA, "server", server=True)).pem, me.key_pem, CA.pem))
    running.server.config.loaded_app._wall = lambda: at[0]
    try:
        with connect(port, CLIENT.files(tmp_path, "client")) as client:
            assert json.loads(exchange(client, post(b"{}"))[1])["fingerprint"] is not None
            at[0] += 1
            assert json.loads(exchange(client, post(b"{}"))[1])["fingerprint"] is None
    finally:
        running.stop()


def test_too_many_requests_are_told_when_to_come_again(tmp_path: Path) -> None:
    sock = tcp_socket("127.0.0.1", 0, "bind")
    port = sock.getsockname()[1]
    running = Running(sock, server_context((me := leaf(CA, "server", server=True)).pem, me.key_pem, CA.pem))
    running.server.config.loaded_app._steady = lambda: 5.0
    try:
        with connect(port) as nobody:
            statuses = [exchange(nobody, post(b"{}"))[0] for _ in range(limits.ADDRESS_RATE.burst + 1)]
            assert statuses == [200] * limits.ADDRESS_RATE.burst + [429]
            assert nobody.recv(100) == b"", "nobody keeps a connection"
        with connect(port) as nobody:
            nobody.sendall(post(b"{}"))
            head = nobody.recv(4096)
            assert b"\r\nretry-after: 1\r\n" in head and b"\r\nconnection: close\r\n" in head
        with connect(port, CLIENT.files(tmp_path, "client")) as agent:
            assert exchange(agent, post(b"{}"))[0] == 200, "an agent has a bucket of its own"
    finally:
        running.stop()
    assert running.seen[-2] == (429, "rate_limited")


def test_sockets_say_why_they_cannot_be_had(tmp_path: Path) -> None:
    with tcp_socket("127.0.0.1", 0, "--bind") as taken:
        taken.listen()
        with pytest.raises(RegistryError, match=r"cannot listen on 127\.0\.0\.1:.*in use; stop the other"):
            tcp_socket("127.0.0.1", taken.getsockname()[1], "--bind")
    with pytest.raises(RegistryError, match="loopback"):
        tcp_socket("0.0.0.0", 0, "--ops", loopback_only=True)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(RegistryError, match="not a socket"):
        unix_socket(file)
    path = tmp_path / "s"
    with unix_socket(path) as listening:
        listening.listen()
        with pytest.raises(RegistryError, match="another server"):
            unix_socket(path)
    unix_socket(path).close()  # the one before is gone
    assert host_and_port("[::1]:80") == ("::1", 80)
    for bad in ("", "host", ":80", "h:x", "h:70000"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            host_and_port(bad)


def test_chores_are_done_beside_the_requests_and_end_with_the_server() -> None:
    server = Listener(Middleware(echo, from_proxy, lambda *_: None), tcp_socket("127.0.0.1", 0, "bind"), ApiProtocol, None)
    done: list[bool] = []

    def work() -> None:
        done.append(server.listening)
        if len(done) >= 3:
            server.should_exit = True

    run([server], lambda: None, lambda: None, [Chore(work, 0.001)])
    assert len(done) >= 3 and all(done)


def test_a_unix_socket_is_listened_at_from_the_first_moment_and_only_its_own_path_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    first = unix_socket(path)
    there = path.lstat()
    with pytest.raises(RegistryError, match="another server listens"):
        unix_socket(path)
    path.unlink()
    second = unix_socket(path)
    remove_socket(first, path, (there.st_dev, there.st_ino))
    assert path.exists()
    there = path.lstat()
    remove_socket(second, path, (there.st_dev, there.st_ino))
    assert not path.exists()
