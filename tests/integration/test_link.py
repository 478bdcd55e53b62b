"""The real link between the core's real client and real TLS servers on loopback."""

import array
import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from agentd.uplink.linkclient import FetchFailed, FetchReply, LinkSession, LinkUnavailable
from ipc.frames import FrameDecoder
from ipc.linkmessages import (
    CHUNK_BYTES,
    MAX_ANSWER_BYTES,
    MAX_UPDATER_SESSIONS,
    FailCode,
    Failed,
    Provisioning,
    from_link_decoder,
)
from link.upstreams import READ_TIMEOUT_S
from tests.support.link import Link
from tests.support.pki import CLIENT, DAY, NOW, SERVER, Entity, make
from tests.support.stand import short_directory
from tests.support.tlspeer import Exchange, Proxy, TlsPeer, answer, raw
from tests.support.waiting import PAUSE_S, READY_S, wait_until

LINK_UID = 64990
HOST = "127.0.0.1"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can look into, or become, another user")


class Pki:
    """Who is who."""

    def __init__(self) -> None:
        self.root = make("root", authority=True, ends=NOW + 3650 * DAY)
        self.inter = make("intermediate", self.root, authority=True, ends=NOW + 365 * DAY)
        self.good = self.leaf()
        self.agent = make("pos-001", self.inter, usage=CLIENT)
        self.other_root = make("other root", authority=True)

    def leaf(self, issuer: Entity | None = None, **changes: Any) -> Entity:
        return make("server", issuer or self.inter, **{"hosts": [HOST], "usage": SERVER, **changes})


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the link's user."""
    with short_directory() as directory:
        place = directory / "link"
        place.mkdir(mode=0o755)
        if os.geteuid() == 0:
            os.chown(place, LINK_UID, LINK_UID)
        yield place


@pytest.fixture
def link(place: Path) -> Iterator[Link]:
    """A link that is not running yet."""
    link = Link(place, LINK_UID if os.geteuid() == 0 else None)
    yield link
    if link.process is not None:
        link.stop()


Serve = Callable[..., TlsPeer]


@pytest.fixture
def serve(tmp_path: Path, pki: Pki) -> Iterator[Serve]:
    """Starts servers; they end with the test."""
    peers: list[TlsPeer] = []

    def start(entity: Entity | None = None, *arguments: Any, **keywords: Any) -> TlsPeer:
        directory = tmp_path / f"peer{len(peers)}"
        directory.mkdir()
        peers.append(TlsPeer(directory, entity or pki.good, *arguments, **keywords).__enter__())
        return peers[-1]

    yield start
    for peer in peers:
        peer.__exit__()


def upstream(port: int, *pins: str, name: str = "server", path: str = "", proxy: int | None = None, host: str = HOST) -> str:
    """A section of link.toml."""
    through = f'proxy = "http://127.0.0.1:{proxy}"\n' if proxy else ""
    return f'[upstream.{name}]\nurl = "https://{host}:{port}{path}"\npins = {list(pins)}\n{through}'


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine to its end."""
    return asyncio.run(work)


def fetch(link: Link, *request: Any, time: int = NOW, client: Entity | None = None, **options: Any) -> FetchReply:
    """One fetch in a session of its own."""

    async def work() -> FetchReply:
        certificate = (client.chain_pem, client.key_pem) if client else (None, None)
        async with link.client.session(time, *certificate) as session:
            return await session.fetch(*(request or ("server", "GET", "/a")), **options)

    result: FetchReply = run(work())
    return result


def failure(link: Link, *request: Any, **options: Any) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        fetch(link, *request, **options)
    return caught.value


# What is carried


def test_a_request_and_its_answer_are_carried_whole(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(None, answer(b"{}", "201 Created", "Content-Type: application/json\r\nETag: x\r\nSet-Cookie: a=b\r\n"))
    link.configure(upstream(peer.port, pki.root.pin, path="/base/"))
    link.start()
    headers = {"content-type": "application/jose", "agent-request": "abc", "idempotency-key": "7"}
    reply = fetch(link, "server", "POST", "/api/v1/rotate?x=1", b"\x00" * 65536, headers)
    assert (reply.status, reply.body) == (201, b"{}")
    assert reply.headers == {"content-type": "application/json", "content-length": "2", "etag": "x"}
    head, _, body = peer.last().received.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /base/api/v1/rotate?x=1 HTTP/1.1" and body == bytes(65536)
    sent = dict(line.lower().split(b": ", 1) for line in lines[1:])
    assert sent.pop(b"user-agent").startswith(b"license-agent-link/")
    assert sent == {
        b"host": f"127.0.0.1:{peer.port}".encode(),
        b"content-length": b"65536",
        b"accept-encoding": b"identity",
        b"content-type": b"application/jose",
        b"agent-request": b"abc",
        b"idempotency-key": b"7",
    }


def test_a_session_uses_one_connection_and_the_next_another(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()

    async def work() -> None:
        for _ in range(2):
            async with link.client.session(NOW) as session:
                for _ in range(3):
                    assert (await session.fetch("server", "GET", "/a")).body == b"hello"

    run(work())
    assert [record.received.count(b"GET /a ") for record in peer.records] == [3, 3]


def test_the_word_of_a_busy_server_is_handed_on(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(None, answer(b"later", "503 Service Unavailable", "Retry-After: 120\r\n"))
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    reply = fetch(link)
    assert (reply.status, reply.headers["retry-after"], reply.body) == (503, "120", b"later")


def test_a_chunked_answer_and_one_without_a_body_are_taken(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(None, raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    assert fetch(link).body == b"abcde"
    peer.behavior = raw(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n')
    assert fetch(link, "server", "GET", "/a", b"", {"if-none-match": '"1"'}).status == 304
    assert b'if-none-match: "1"' in peer.last().received


# Who the server is


def test_the_client_is_known_by_its_certificate(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(client_ca=pki.root)
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    assert fetch(link, client=pki.agent).status == 200
    assert peer.last().client == pki.agent.fingerprint
    refused = failure(link)
    assert refused.code in (FailCode.TLS, FailCode.UNREACHABLE)
    assert peer.last().received == b"" and not peer.last().handshake


@pytest.mark.parametrize("kind", ["enrollment", "webhook"])
def test_the_certificate_is_not_shown_to_those_who_need_not_know(link: Link, serve: Serve, pki: Pki, kind: str) -> None:
    peer = serve(client_ca=pki.root)
    link.configure(upstream(peer.port, pki.root.pin, name=kind) + (LOOPBACK if kind == "webhook" else ""))
    link.start()
    assert failure(link, kind, "POST", "/", client=pki.agent).code in (FailCode.TLS, FailCode.UNREACHABLE)
    assert peer.last().client is None and peer.last().received == b""


def _impostors(pki: Pki) -> dict[str, tuple[Entity, FailCode]]:
    stranger = pki.leaf(pki.other_root)
    return {
        "another key": (pki.leaf(pki.other_root), FailCode.PIN_MISMATCH),
        "self-signed": (make("server", hosts=[HOST], usage=SERVER), FailCode.PIN_MISMATCH),
        "another key that shows our root": (
            Entity(stranger.certificate, stranger.key, (*pki.good.above,)),
            FailCode.TLS,
        ),
        "expired": (pki.leaf(ends=NOW - 60), FailCode.TLS),
        "not valid yet": (pki.leaf(begins=NOW + 600), FailCode.TLS),
        "for another host": (pki.leaf(hosts=["127.0.0.2", "license.example"]), FailCode.TLS),
        "for no host": (pki.leaf(hosts=[]), FailCode.TLS),
        "an agent": (pki.leaf(usage=CLIENT), FailCode.TLS),
        "issued by an agent": (pki.leaf(pki.agent), FailCode.TLS),
        "expired intermediate": (
            pki.leaf(make("old", pki.root, authority=True, ends=NOW - 60)),
            FailCode.TLS,
        ),
    }


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxied"])
@pytest.mark.parametrize("who", list(_impostors(Pki())))
def test_an_impostor_gets_no_byte_of_a_request_nor_the_client_certificate(
    link: Link, serve: Serve, pki: Pki, who: str, proxied: bool
) -> None:
    entity, code = _impostors(pki)[who]
    peer = serve(entity, client_ca=pki.root)
    with Proxy() as proxy:
        link.configure(upstream(peer.port, pki.root.pin, proxy=proxy.port if proxied else None))
        link.start()
        refused = failure(link, "server", "POST", "/secret-path", b"body", client=pki.agent)
        record = peer.last()
        assert refused.code is code, refused
        assert (record.handshake, record.received, record.client) == (False, b"", None)
        assert bool(proxy.asked) == proxied and b"secret-path" not in proxy.carried
        peer.entity = pki.good
        assert fetch(link, client=pki.agent).status == 200


def test_a_pinned_leaf_needs_no_ca_but_its_host_and_its_dates(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(alone := make("server", hosts=[HOST], ends=NOW + 60))
    link.configure(upstream(peer.port, alone.pin))
    link.start()
    assert fetch(link).status == 200
    assert failure(link, time=NOW + 61).code is FailCode.TLS
    peer.entity = make("server", hosts=["127.0.0.2"], key=alone.key)
    assert failure(link).code is FailCode.TLS


def test_a_server_may_move_to_the_second_of_two_pinned_keys(link: Link, serve: Serve, pki: Pki) -> None:
    first, second, third = (make("server", hosts=[HOST]) for _ in range(3))
    peer = serve(first)
    link.configure(upstream(peer.port, first.pin, second.pin))
    link.start()
    assert fetch(link).status == 200
    peer.entity = second
    assert fetch(link).status == 200
    peer.entity = third
    assert failure(link).code is FailCode.PIN_MISMATCH


def test_certificates_are_judged_by_the_time_of_the_core(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    assert fetch(link, time=NOW + 29 * DAY).status == 200
    # Today, by the machine's clock, these certificates are not valid yet.
    assert failure(link, time=int(time.time())).code is FailCode.TLS
    assert failure(link, time=NOW + 31 * DAY).code is FailCode.TLS


def test_a_server_may_be_named_instead_of_numbered(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(pki.leaf(hosts=["localhost"]))
    link.configure(upstream(peer.port, pki.root.pin, host="localhost"))
    link.start()
    assert fetch(link).status == 200
    assert f"Host: localhost:{peer.port}\r\n".encode() in peer.last().received


def test_only_tls_1_3_is_spoken(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(version=ssl.TLSVersion.TLSv1_2)
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    assert failure(link).code is FailCode.TLS
    assert not peer.last().handshake and peer.last().received == b""


def test_a_server_without_tls_gets_no_request(link: Link, pki: Pki) -> None:
    with socket.create_server((HOST, 0)) as listener:
        link.configure(upstream(listener.getsockname()[1], pki.root.pin))
        link.start()
        listener.settimeout(READY_S)

        async def work() -> tuple[FailCode, bytes]:
            async with link.client.session(NOW) as session:
                asking = asyncio.ensure_future(session.fetch("server", "GET", "/secret-path"))
                connection, _ = await asyncio.to_thread(listener.accept)
                with connection:
                    seen = await asyncio.to_thread(connection.recv, 65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    with pytest.raises(FetchFailed) as caught:
                        await asking
                return caught.value.code, seen

        code, seen = run(work())
    assert code is FailCode.TLS and b"secret-path" not in seen and seen[0] == 22  # a TLS handshake record


# What goes wrong on the way


_HEAD = b"HTTP/1.1 200 OK\r\n"
BAD_ANSWERS = {
    "garbage": (b"\x00\xff" * 100 + b"\r\n\r\n", FailCode.BAD_RESPONSE),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", FailCode.BAD_RESPONSE),
    "nothing": (b"", FailCode.BAD_RESPONSE),
    "half a head": (_HEAD + b"Content-Le", FailCode.BAD_RESPONSE),
    "half a body": (_HEAD + b"Content-Length: 10\r\n\r\n12345", FailCode.BAD_RESPONSE),
    "half a chunk": (_HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", FailCode.BAD_RESPONSE),
    "an end by closing": (_HEAD + b"\r\nbody", FailCode.BAD_RESPONSE),
    "two lengths": (_HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", FailCode.BAD_RESPONSE),
    "huge headers": (_HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n", FailCode.BAD_RESPONSE),
    "many headers": (_HEAD + b"X: y\r\n" * 40_000 + b"\r\n", FailCode.BAD_RESPONSE),
    "a long etag": (_HEAD + b"Content-Length: 0\r\nETag: " + b"x" * 2000 + b"\r\n\r\n", FailCode.BAD_RESPONSE),
    "a strange etag": (_HEAD + b"Content-Length: 0\r\nETag: \xc3\xa9\r\n\r\n", FailCode.BAD_RESPONSE),
    "compressed": (_HEAD + b"Content-Length: 1\r\nContent-Encoding: gzip\r\n\r\nx", FailCode.BAD_RESPONSE),
    "another protocol": (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", FailCode.BAD_RESPONSE),
    "a redirect": (b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", FailCode.REDIRECT),
    "a lasting redirect": (b"HTTP/1.1 308 P\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", FailCode.REDIRECT),
    "too long by its word": (_HEAD + b"Content-Length: 1001\r\n\r\n", FailCode.TOO_LARGE),
    "too long in chunks": (_HEAD + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001, FailCode.TOO_LARGE),
}


@pytest.mark.parametrize("kind", list(BAD_ANSWERS))
def test_a_bad_answer_has_its_code_and_the_session_goes_on(link: Link, serve: Serve, pki: Pki, kind: str) -> None:
    data, code = BAD_ANSWERS[kind]
    peer = serve(None, raw(data))
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()

    async def work() -> FailCode:
        async with link.client.session(NOW) as session:
            with pytest.raises(FetchFailed) as caught:
                await session.fetch("server", "GET", "/a", max_body=1000)
            peer.behavior = answer(b"x" * 1000)
            assert len((await session.fetch("server", "GET", "/b", max_body=1000)).body) == 1000
            return caught.value.code

    assert run(work()) is code
    # Each was asked once: no repetition, no redirect followed.
    assert b"".join(record.received for record in peer.records).count(b"GET ") == 2


def _drip(head: bytes, piece: bytes) -> Callable[[Exchange], None]:
    def behave(exchange: Exchange) -> None:
        exchange.request()
        exchange.send(head)
        while exchange.pause(0.02):
            exchange.send(piece)

    return behave


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b""),
        (_HEAD + b"X: ", b"x"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (_HEAD + b"Content-Length: 100000\r\n\r\n", b"x"),
        (_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silence", "a header", "head after head", "a body", "chunks"],
)
def test_a_dripping_server_does_not_outlast_the_deadline(link: Link, serve: Serve, pki: Pki, head: bytes, piece: bytes) -> None:
    peer = serve(None, _drip(head, piece))
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    began = time.monotonic()
    assert failure(link, timeout_s=0.5).code is FailCode.TIMEOUT
    assert 0.4 < time.monotonic() - began < READ_TIMEOUT_S, "another deadline than the request's"


def test_a_silent_handshake_does_not_outlast_the_deadline(link: Link, pki: Pki) -> None:
    with socket.create_server((HOST, 0)) as listener:
        link.configure(upstream(listener.getsockname()[1], pki.root.pin))
        link.start()
        assert failure(link, timeout_s=0.5).code is FailCode.TIMEOUT


def test_a_server_that_is_not_there_is_unreachable(link: Link, pki: Pki) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    link.configure(upstream(port, pki.root.pin))
    link.start()
    assert failure(link).code is FailCode.UNREACHABLE


# Parts of a file, and the updater


def _children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


_PART = b'HTTP/1.1 206 Partial Content\r\nETag: "a"\r\n'
PARTS = {
    "the part": (_PART + b"Content-Range: bytes 10-19/30\r\nContent-Length: 10\r\n\r\n0123456789", None),
    "the whole file": (_HEAD + b"Content-Length: 30\r\n\r\n" + b"x" * 30, FailCode.RANGE),
    "a whole file that is too long": (_HEAD + b"Content-Length: 5000\r\n\r\n", FailCode.RANGE),
    "another part": (_PART + b"Content-Range: bytes 0-9/30\r\nContent-Length: 10\r\n\r\n0123456789", FailCode.RANGE),
    "a shorter part": (_PART + b"Content-Range: bytes 10-14/30\r\nContent-Length: 5\r\n\r\n01234", FailCode.RANGE),
    "a part without a name": (_PART + b"Content-Length: 10\r\n\r\n0123456789", FailCode.RANGE),
    "half a part": (_PART + b"Content-Range: bytes 10-19/30\r\nContent-Length: 10\r\n\r\n01234", FailCode.BAD_RESPONSE),
    "a redirect": (b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", FailCode.REDIRECT),
}


def test_the_updater_gets_parts_of_files_and_nothing_else(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    link.core_uid += 1
    link.configure(
        f"[updater]\nuser = {os.geteuid()}\n{upstream(peer.port, pki.root.pin, name='ota')}{upstream(1, pki.root.pin)}"
    )
    link.start()
    part = {"range": "bytes=10-19", "if-range": '"a"'}

    async def work() -> None:
        async with link.client.session(NOW) as session:
            for kind, (data, code) in PARTS.items():
                peer.behavior = raw(data)
                if code is None:
                    reply = await session.fetch("ota", "GET", "/f", b"", part, 1000)
                    assert (reply.status, reply.body, reply.headers["etag"]) == (206, b"0123456789", '"a"')
                else:
                    with pytest.raises(FetchFailed) as caught:
                        await session.fetch("ota", "GET", "/f", b"", part, 1000)
                    assert caught.value.code is code, kind
            peer.behavior = raw(PARTS["the part"][0])
            with pytest.raises(FetchFailed) as caught:
                await session.fetch("ota", "GET", "/f")
            assert caught.value.code is FailCode.RANGE, "a part that nobody asked for"
            for name, method in (("server", "GET"), ("webhook", "POST"), ("ota", "POST")):
                with pytest.raises(FetchFailed) as caught:
                    await session.fetch(name, method, "/")
                assert caught.value.code is FailCode.NOT_ALLOWED
        for identity in ((pki.agent.chain_pem, pki.agent.key_pem), (None, None)):
            await asyncio.to_thread(wait_until, lambda: not _children(link.pid), link.log)
            named = None if identity[0] else Provisioning("enrollment", f"https://{HOST}:{peer.port}", (pki.root.pin,))
            with pytest.raises(FetchFailed) as caught:
                async with link.client.session(NOW, *identity, provisioning=named):
                    pass
            assert caught.value.code is FailCode.NOT_ALLOWED
        await asyncio.to_thread(wait_until, lambda: not _children(link.pid), link.log)
        async with contextlib.AsyncExitStack() as held:
            for _ in range(MAX_UPDATER_SESSIONS):
                await held.enter_async_context(link.client.session(NOW))
            with pytest.raises((FetchFailed, LinkUnavailable)):  # the answer may come before the hello is sent
                await held.enter_async_context(link.client.session(NOW))

    run(work())
    assert "refused a connection from the updater: the updater has 4 connections already" in link.log()
    assert b'range: bytes=10-19\r\nif-range: "a"' in peer.records[0].received.lower()
    assert all(record.client is None for record in peer.records) and "refused the updater" in link.log()


# Through a proxy


def test_through_a_proxy_tls_ends_at_the_server(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(client_ca=pki.root)
    with Proxy() as proxy:
        link.configure(upstream(peer.port, pki.root.pin, proxy=proxy.port))
        link.start()
        assert fetch(link, "server", "POST", "/secret-path", b"secret-body", client=pki.agent).body == b"hello"
        assert proxy.asked == [f"CONNECT 127.0.0.1:{peer.port} HTTP/1.1".encode()]
        assert len(proxy.carried) > 500 and b"secret" not in proxy.carried
    assert peer.last().client == pki.agent.fingerprint and b"secret-body" in peer.last().received


def webhook(port: int, more: str, host: str = HOST, path: str = "/hooks/alerts") -> str:
    """The section of link.toml for alerts."""
    return f'[upstream.webhook]\nurl = "https://{host}:{port}{path}"\n{more}\n'


POST = ("webhook", "POST", "/")
LOOPBACK = 'allow_addresses = ["127.0.0.0/8", "::1/128"]\n'


def test_an_alert_goes_to_the_one_path_and_only_its_status_comes_back(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(behavior=raw(b"HTTP/1.0 503 Busy\r\nRetry-After: 7\r\nX-Evil: 1\r\n\r\n" + b"x" * 100_000))
    link.configure(webhook(peer.port, f'pins = "{pki.root.pin}"\n{LOOPBACK}', path="/hooks/alerts/"))
    link.start()
    headers = {"content-type": "application/json", "license-agent-signature": "t=1,v1=ab"}
    reply = fetch(link, *POST, body=b"{}", headers=headers, max_body=0)
    assert (reply.status, dict(reply.headers), reply.body) == (503, {"retry-after": "7"}, b"")
    record = peer.last()
    head = record.received.decode().lower()
    assert head.startswith("post /hooks/alerts/ http/1.1\r\n") and f"\r\nhost: {HOST}:{peer.port}\r\n" in head
    assert "\r\nlicense-agent-signature: t=1,v1=ab\r\n" in head and record.client is None
    for request in (("webhook", "POST", "/other"), ("webhook", "POST", "/?a=b"), ("webhook", "GET", "/")):
        assert failure(link, *request).code is FailCode.NOT_ALLOWED
    assert len(peer.records) == 1


def test_an_alert_goes_nowhere_that_is_not_listed(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(pki.leaf(hosts=["localhost"]))
    for host, listed in ((HOST, ""), (HOST, 'allow_addresses = ["10.0.0.0/8"]\n'), ("localhost", "")):
        link.configure(webhook(peer.port, f'pins = "{pki.root.pin}"\n{listed}', host=host))
        link.start()
        assert failure(link, *POST).code is FailCode.NOT_ALLOWED
        link.stop()
    assert not peer.records
    link.configure(webhook(peer.port, f'pins = "{pki.root.pin}"\n{LOOPBACK}', host="localhost"))
    link.start()
    assert fetch(link, *POST).status == 200


def test_the_receiver_of_alerts_may_be_vouched_for_by_a_ca_file(link: Link, place: Path, serve: Serve, pki: Pki) -> None:
    peer, impostor = serve(), serve(pki.leaf(pki.other_root))
    ca = place / "ca.pem"
    ca.write_text(pki.root.chain_pem, "ascii")
    ca.chmod(0o644)
    link.configure(webhook(peer.port, f'ca_file = "{ca}"\n{LOOPBACK}'))
    link.start()
    assert fetch(link, *POST).status == 200
    link.stop()
    link.configure(webhook(impostor.port, f'ca_file = "{ca}"\n{LOOPBACK}'))
    link.start()
    assert failure(link, *POST).code is FailCode.TLS
    assert all(not record.received for record in impostor.records)


def test_an_alert_through_a_proxy(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    with Proxy() as proxy:
        link.configure(webhook(peer.port, f'pins = "{pki.root.pin}"\nproxy = "http://127.0.0.1:{proxy.port}"'))
        link.start()
        assert fetch(link, *POST, body=b"{}").status == 200
        assert proxy.asked == [f"CONNECT 127.0.0.1:{peer.port} HTTP/1.1".encode()]
    assert peer.last().received.endswith(b"{}")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
        b"\x00\r\n\r\n",
        b"",
    ],
    ids=["refuses", "redirects", "garbage", "closes"],
)
def test_a_proxy_that_makes_no_tunnel_has_its_code(link: Link, serve: Serve, pki: Pki, said: bytes) -> None:
    peer = serve()
    with Proxy(said) as proxy:
        link.configure(upstream(peer.port, pki.root.pin, proxy=proxy.port))
        link.start()
        assert failure(link).code is FailCode.PROXY
        assert len(proxy.asked) == 1
    assert failure(link).code is FailCode.PROXY
    assert peer.records == []


def test_the_environment_names_no_proxy(link: Link, serve: Serve, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = serve()
    with Proxy() as proxy:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        link.configure(upstream(peer.port, pki.root.pin))
        link.start()
        assert fetch(link).status == 200
        assert proxy.asked == []


# Much data


def _rss(pid: int) -> int:
    match = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def _long(total: int) -> Callable[[Exchange], None]:
    def behave(exchange: Exchange) -> None:
        exchange.request()
        exchange.send(_HEAD + f"Content-Length: {total}\r\n\r\n".encode())
        for number in range(total // 65536):
            exchange.send(hashlib.sha256(b"%d" % number).digest() * 2048)

    return behave


def test_a_slow_reader_holds_the_server_back_and_memory_stays_small(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(None, _long(MAX_ANSWER_BYTES))
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    want = hashlib.sha256()
    for number in range(MAX_ANSWER_BYTES // 65536):
        want.update(hashlib.sha256(b"%d" % number).digest() * 2048)

    async def work() -> tuple[str, int, int]:
        found, most, longest = hashlib.sha256(), 0, 0
        async with (
            link.client.session(NOW) as session,
            session.stream("server", "GET", "/a", max_body=MAX_ANSWER_BYTES, timeout_s=120) as reply,
        ):
            chunks = reply.chunks()
            found.update(await anext(chunks))
            before = -1
            while before != peer.records[0].sent:
                before = peer.records[0].sent
                await asyncio.sleep(0.5)
            async for chunk in chunks:
                found.update(chunk)
                longest = max(longest, len(chunk))
                most = max(most, _rss(link.pid))
            assert reply.complete and longest <= CHUNK_BYTES
        return found.hexdigest(), before, most

    digest, held_back, most = run(work())
    assert digest == want.hexdigest()
    print(f"held back at {held_back / 2**20:.1f} MiB, link's memory at most {most / 2**20:.1f} MiB")
    assert held_back < MAX_ANSWER_BYTES / 2
    assert most < 100 * 2**20


# Who may ask, and for what


@as_root
@pytest.mark.root
def test_another_user_is_turned_away(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdout.write(s.recv(4096).hex())"
    for uid in (54321, LINK_UID):
        done = subprocess.run(
            [str(link.commands / "python"), "-I", "-c", code, str(link.socket)],
            user=uid,
            group=uid,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=True,
        )
        (said,) = messages(bytes.fromhex(done.stdout))
        assert isinstance(said, Failed) and said.code is FailCode.NOT_ALLOWED
    assert "refused a connection from uid 54321" in link.log()
    assert fetch(link).status == 200


def test_what_the_file_does_not_name_cannot_be_reached(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    for name in ("ota", "webhook", "enrollment"):
        assert failure(link, name, "GET", "/a").code is FailCode.NOT_ALLOWED
    assert peer.records == []


def _provisioned(link: Link, name: Any, port: int, *pins: str, url: str = "") -> FetchReply:
    async def work() -> FetchReply:
        wanted = Provisioning(name, url or f"https://{HOST}:{port}", pins)
        async with link.client.session(NOW, provisioning=wanted) as session:
            return await session.fetch(name, "POST", "/enroll", b"claim")

    reply: FetchReply = run(work())
    return reply


def test_an_administrator_may_name_an_upstream_that_the_file_does_not(link: Link, serve: Serve, pki: Pki) -> None:
    peer, other = serve(), serve()
    link.configure(upstream(other.port, pki.root.pin))
    link.start()
    assert _provisioned(link, "enrollment", peer.port, pki.root.pin).status == 200
    for arguments, code in (
        (("enrollment", peer.port, pki.other_root.pin), FailCode.PIN_MISMATCH),
        (("enrollment", peer.port, "sha256:xyz"), FailCode.MALFORMED),
        (("server", peer.port, pki.root.pin), FailCode.NOT_ALLOWED),
    ):
        with pytest.raises(FetchFailed) as caught:
            _provisioned(link, *arguments)
        assert caught.value.code is code
    with pytest.raises(FetchFailed) as caught:
        _provisioned(link, "enrollment", 0, pki.root.pin, url=f"http://{HOST}:{peer.port}")
    assert caught.value.code is FailCode.MALFORMED
    # It is forgotten with the session.
    assert failure(link, "enrollment", "GET", "/a").code is FailCode.NOT_ALLOWED
    assert other.records == []


def test_the_file_may_forbid_that(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    link.configure("[provisioning]\nallowed = false\n")
    link.start()
    with pytest.raises(FetchFailed) as caught:
        _provisioned(link, "server", peer.port, pki.root.pin)
    assert caught.value.code is FailCode.NOT_ALLOWED
    assert peer.records == []


# The conversation, by hand


def messages(data: bytes) -> list[Any]:
    return [from_link_decoder().decode(body) for body in FrameDecoder(128 * 1024).receive_data(data)]


def frame(message: Any) -> bytes:
    body = message if isinstance(message, bytes) else msgpack.packb(message)
    return len(body).to_bytes(4, "big") + body


HELLO = {"v": 1, "op": "hello", "id": 1, "time": NOW, "certificates": None, "provisioning": None, "latest": 0}
FETCH = {
    "v": 1,
    "op": "fetch",
    "id": 2,
    "upstream": "server",
    "method": "GET",
    "path": "/a",
    "headers": [],
    "body": b"",
    "max_body": 100,
    "timeout_ms": 5000,
}


def say(link: Link, data: bytes, fds: list[int] | None = None, until: int | None = None) -> list[Any]:
    """Sends bytes and returns what comes until the link closes, or so many messages."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(READY_S)
        sock.connect(str(link.socket))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([data], rights)
        came = b""
        while until is None or len(messages(came)) < until:
            if not (piece := sock.recv(65536)):
                break
            came += piece
        return messages(came)


@pytest.mark.parametrize(
    "data",
    [
        frame(FETCH),
        frame(HELLO) + frame(HELLO),
        frame(HELLO) + frame({**FETCH, "path": "/a/../b"}),
        frame(HELLO) + frame({**FETCH, "path": "https://127.0.0.1/"}),
        frame(HELLO) + frame({**FETCH, "upstream": "127.0.0.1"}),
        frame(HELLO) + frame({**FETCH, "method": "CONNECT"}),
        frame(HELLO) + frame({**FETCH, "headers": [["host", "a"]]}),
        frame(HELLO) + frame({**FETCH, "surplus": 1}),
        frame({**HELLO, "v": 2}),
        frame({**HELLO, "certificates": "-----BEGIN CERTIFICATE-----"}),
        frame(b"\xc1"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x00",
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(link: Link, serve: Serve, pki: Pki, data: bytes) -> None:
    peer = serve()
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    said = say(link, data)
    assert isinstance(said[-1], Failed) and said[-1].code is FailCode.MALFORMED
    assert [type(message).__name__ for message in said[:-1]] in ([], ["Ready"])
    assert peer.records == []
    assert fetch(link).status == 200


def test_requests_may_wait_in_the_socket(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    said = say(link, frame(HELLO) + frame(FETCH) + frame({**FETCH, "id": 3}), until=7)
    assert [(type(message).__name__, message.id) for message in said] == [
        ("Ready", 1),
        *((name, number) for number in (2, 3) for name in ("Head", "Chunk", "End")),
    ]


def test_a_core_that_reads_nothing_does_not_outlast_the_deadline(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(None, _long(MAX_ANSWER_BYTES))
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(READY_S)
        sock.connect(str(link.socket))
        sock.sendall(frame(HELLO) + frame({**FETCH, "max_body": MAX_ANSWER_BYTES, "timeout_ms": 500}))
        peer.wait_for_a_connection()
        peer.last()  # the link has let go of the server
        came = b""
        while piece := sock.recv(65536):
            came += piece
    # The stream ends within a frame, so nothing can be taken for the end of the answer.
    assert not any(type(message).__name__ in ("End", "Failed") for message in messages(came))


def _memfd(data: bytes, *, sealed: bool = True) -> int:
    number = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(number, data)
    if sealed:
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return number


@pytest.mark.parametrize(
    "kind", ["none", "two", "unsealed", "a file", "a pipe", "empty", "long", "garbage", "another's", "locked"]
)
def test_a_key_that_cannot_be_used_is_refused_with_the_hello(
    link: Link, serve: Serve, pki: Pki, kind: str, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    peer = serve()
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    locked = pki.agent.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass"))
    (tmp_path / "key").write_bytes(pki.agent.key_pem)
    (tmp_path / "key").chmod(0o644)
    fds = {
        "none": list,
        "two": lambda: [_memfd(pki.agent.key_pem), _memfd(pki.agent.key_pem)],
        "unsealed": lambda: [_memfd(pki.agent.key_pem, sealed=False)],
        "a file": lambda: [os.open(tmp_path / "key", os.O_RDONLY)],
        "a pipe": lambda: list(os.pipe())[:1],
        "empty": lambda: [_memfd(b"")],
        "long": lambda: [_memfd(pki.agent.key_pem + b"\n" * 5000)],
        "garbage": lambda: [_memfd(b"\x30\x01\x02")],
        "another's": lambda: [_memfd(pki.good.key_pem)],
        "locked": lambda: [_memfd(locked)],
    }[kind]()
    try:
        said = say(link, frame({**HELLO, "certificates": pki.agent.chain_pem}), fds)
    finally:
        for number in fds:
            os.close(number)
    (only,) = said
    assert isinstance(only, Failed) and only.code is FailCode.MALFORMED and "PRIVATE" not in only.text
    assert fetch(link, client=pki.agent).status == 200


# Secrets, life and death


@as_root
@pytest.mark.root
def test_the_key_is_in_no_file_argument_variable_or_open_descriptor(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(client_ca=pki.root)
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()
    key = pki.agent.key_pem
    forms = [key.split(b"\n")[1], pki.agent.key_der, pki.agent.key.private_numbers().private_value.to_bytes(32, "big")]

    async def work() -> None:
        # Only once it answers is everything there that it has without a key; a socket that listens says too little.
        async with link.client.session(NOW):
            before = _descriptors(link.pid)  # with the core's connection
        async with link.client.session(NOW, pki.agent.chain_pem, bytearray(key)) as session:
            assert (await session.fetch("server", "GET", "/a")).status == 200
            now = _descriptors(link.pid)
            assert not any("memfd" in target for target in now), now
            assert len(now) <= len(before) + 1  # the server's connection
            for path in (f"/proc/{link.pid}/environ", f"/proc/{link.pid}/cmdline"):
                assert not any(form in Path(path).read_bytes() for form in forms)
            for path in link.directory.rglob("*"):
                assert path.is_socket() or not any(form in path.read_bytes() for form in forms), path
            assert not any("memfd:tls-key" in target for target in _descriptors(os.getpid()))

    run(work())
    # Not dumpable: what /proc shows of it belongs to root.
    assert Path(f"/proc/{link.pid}/environ").stat().st_uid == 0 and link.uid != 0
    limits = Path(f"/proc/{link.pid}/limits").read_text()
    assert re.search(r"^Max core file size\s+0\s+0\s", limits, re.MULTILINE)
    assert "Umask:\t0077" in Path(f"/proc/{link.pid}/status").read_text()


def _descriptors(pid: int) -> list[str]:
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
        except FileNotFoundError:
            continue
    return found


def test_an_activated_link_leaves_when_idle_and_is_started_again(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    link.configure(upstream(peer.port, pki.root.pin))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(link.socket))
        listener.listen()
        for _ in range(2):
            link.start("--idle", "0.3", inherited=listener)
            assert fetch(link).status == 200
            assert link.process is not None and link.process.wait(READY_S) == 0
            assert "exiting: no connection for 0.3 s" in link.log()


def test_a_link_of_its_own_socket_stays(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    link.configure(upstream(peer.port, pki.root.pin))
    link.start("--idle", "0.05")
    time.sleep(0.3)
    assert fetch(link).status == 200


def test_a_signal_ends_it_at_once_in_the_middle_of_a_fetch(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(None, _drip(b"", b""))
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()

    async def work() -> None:
        async with link.client.session(NOW) as session:
            asking = asyncio.ensure_future(session.fetch("server", "GET", "/a", timeout_s=2 * READY_S))
            await _asked(peer)
            link.stop()  # returns long before the fetch would end
            with pytest.raises(LinkUnavailable):
                await asking

    run(work())


async def _asked(peer: TlsPeer, requests: int = 1) -> None:
    ends = time.monotonic() + READY_S
    while b"".join(record.received for record in peer.records).count(b"\r\n\r\n") < requests:
        assert time.monotonic() < ends
        await asyncio.sleep(PAUSE_S)


def test_a_killed_link_is_a_transport_error_and_the_next_one_works(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve(None, _drip(_HEAD + b"Content-Length: 100000\r\n\r\n", b"x"))
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()

    async def killed(session: LinkSession) -> None:
        async with session.stream("server", "GET", "/a") as reply:
            chunks = reply.chunks()
            await anext(chunks)
            link.kill()
            async for _ in chunks:
                pass

    async def work() -> None:
        async with link.client.session(NOW) as session:
            with pytest.raises(LinkUnavailable):
                await killed(session)
            with pytest.raises(LinkUnavailable):
                await session.fetch("server", "GET", "/b")
        with pytest.raises(LinkUnavailable):
            async with link.client.session(NOW):
                pass

    run(work())
    peer.behavior = answer()
    link.start()
    assert fetch(link).status == 200


def test_a_core_that_goes_away_ends_the_fetch(link: Link, serve: Serve, pki: Pki) -> None:
    ended: list[bytes] = []

    def wait_for_the_end(exchange: Exchange) -> None:
        exchange.request()
        ended.append(exchange.connection.recv(1))

    peer = serve(None, wait_for_the_end)
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()

    async def work() -> None:
        async with link.client.session(NOW) as session:
            asking = asyncio.ensure_future(session.fetch("server", "GET", "/a", timeout_s=60))
            await _asked(peer)
            asking.cancel()

    run(work())
    peer.last()
    assert ended in ([b""], [])  # the end of the stream, or a reset
    peer.behavior = answer()
    assert fetch(link).status == 200


def test_more_sessions_than_are_served_at_once_wait_their_turn(link: Link, serve: Serve, pki: Pki) -> None:
    peer = serve()
    link.configure(upstream(peer.port, pki.root.pin))
    link.start()

    async def one() -> int:
        async with link.client.session(NOW) as session:
            return (await session.fetch("server", "GET", "/a")).status

    async def work() -> list[int]:
        return await asyncio.gather(*(one() for _ in range(20)))

    assert run(work()) == [200] * 20


# The command


def _refused(link: Link, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [str(link.commands / "license-agent-link"), "--config", str(link.config), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=READY_S,
        user=link.uid if link.uid != os.geteuid() else None,
    )
    return done.returncode, done.stderr


def test_a_bad_configuration_is_told_and_nothing_starts(link: Link, pki: Pki) -> None:
    assert _refused(link, "--check") == (0, "")
    link.configure('[upstream.server]\nurl = "http://a"\n')
    status, text = _refused(link)
    assert status == 78 and "'url' in [upstream.server] must be an https:// address" in text and "'pins' is missing" in text
    link.configure()
    link.config.chmod(0o664)
    status, text = _refused(link)
    assert status == 78 and "chmod go-w" in text
    link.config.unlink()
    status, text = _refused(link)
    assert status == 78 and "does not exist" in text


@as_root
@pytest.mark.root
def test_a_configuration_of_the_core_is_refused(place: Path) -> None:
    link = Link(place, LINK_UID)
    os.chown(link.config, 54321, 54321)
    status, text = _refused(link)
    assert status == 78 and "belongs to uid 54321" in text


def test_a_second_link_does_not_take_the_socket(link: Link) -> None:
    link.start()
    status, text = _refused(link, "--socket", str(link.socket))
    assert status == 69 and "another link is serving" in text
