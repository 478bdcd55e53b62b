"""Webhook requests over real TLS: who gets one, and what a receiver cannot do with it."""

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.addresses import networks
from server.notify.sender import MAX_REPLY_BYTES, WHOLE_S, Sender
from tests.support.pki import DAY, SERVER, Entity, make
from tests.support.tlspeer import TlsPeer, answer, raw

pytestmark = pytest.mark.system
LOOPBACK = networks(["127.0.0.0/8"])


@pytest.fixture(scope="module")
def authority() -> Entity:
    # The system's clock judges these.
    now = int(time.time())
    return make("receivers", authority=True, begins=now - DAY, ends=now + DAY)


@pytest.fixture(scope="module")
def receiver(authority: Entity) -> Entity:
    now = int(time.time())
    return make("shop", authority, hosts=["shop.example"], usage=SERVER, begins=now - DAY, ends=now + DAY)


@pytest.fixture
def peer(tmp_path: Path, receiver: Entity) -> Iterator[TlsPeer]:
    with TlsPeer(tmp_path, receiver, answer(b"ok", "200 OK", "Connection: close\r\n")) as made:
        yield made


@pytest.fixture
def trust(authority: Entity) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.chain_pem)


def sender(trust: ssl.SSLContext, *addresses: str) -> Sender:
    return Sender(LOOPBACK, trust, lambda _host, _port: addresses or ["127.0.0.1"])


def url(peer: TlsPeer, path: str = "/hooks?x=1") -> str:
    return f"https://shop.example:{peer.port}{path}"


def test_a_request_reaches_its_receiver_whole(peer: TlsPeer, trust: ssl.SSLContext) -> None:
    done = sender(trust).send(url(peer), {"License-Server-Event": "license.issued"}, b'{"a":1}')
    assert done.taken
    received = peer.last().received
    assert received.startswith(b"POST /hooks?x=1 HTTP/1.1\r\n")
    assert received.endswith(b'\r\n\r\n{"a":1}')
    assert f"Host: shop.example:{peer.port}".encode() in received
    assert b"License-Server-Event: license.issued" in received


@pytest.mark.parametrize("addresses", [["127.0.0.1", "10.0.0.1"], ["169.254.169.254"], ["10.0.0.1", "127.0.0.1"]])
def test_a_name_with_one_address_that_is_not_allowed_is_not_connected_to(
    peer: TlsPeer, trust: ssl.SSLContext, addresses: list[str]
) -> None:
    done = sender(trust, *addresses).send(url(peer), {}, b"{}")
    assert not done.taken
    assert "not public" in done.problem
    assert peer.records == []


def test_loopback_is_not_allowed_unless_it_is_listed(peer: TlsPeer, trust: ssl.SSLContext) -> None:
    done = Sender((), trust, lambda _host, _port: ["127.0.0.1"]).send(url(peer), {}, b"{}")
    assert "not public" in done.problem
    done = Sender((), trust).send(f"https://127.0.0.1:{peer.port}/", {}, b"{}")
    assert "not public" in done.problem
    assert peer.records == []


def test_the_address_that_was_judged_is_the_one_that_is_connected_to(peer: TlsPeer, trust: ssl.SSLContext) -> None:
    asked: list[str] = []

    def changing(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    assert Sender(LOOPBACK, trust, changing).send(url(peer), {}, b"{}").taken
    assert asked == ["shop.example"]


def test_a_redirect_is_not_followed(peer: TlsPeer, trust: ssl.SSLContext) -> None:
    peer.behavior = raw(b"HTTP/1.1 307 Go\r\nLocation: https://127.0.0.1/\r\nContent-Length: 0\r\n\r\n")
    done = sender(trust).send(url(peer), {}, b"{}")
    assert (done.status, done.taken) == (307, False)
    assert len(peer.records) == 1


def test_no_proxy_of_the_environment_is_used(peer: TlsPeer, trust: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert sender(trust).send(url(peer), {}, b"{}").taken


def test_a_certificate_of_another_name_or_another_ca_gets_no_request(
    peer: TlsPeer, authority: Entity, trust: ssl.SSLContext
) -> None:
    now = int(time.time())
    peer.entity = make("other", authority, hosts=["other.example"], usage=SERVER, begins=now - DAY, ends=now + DAY)
    done = sender(trust).send(url(peer), {}, b"secret body")
    assert "certificate does not verify" in done.problem
    peer.entity = make("self", hosts=["shop.example"], usage=SERVER, begins=now - DAY, ends=now + DAY)
    done = sender(trust).send(url(peer), {}, b"secret body")
    assert "certificate does not verify" in done.problem
    peer.last()
    assert all(b"secret body" not in record.received for record in peer.records)


def test_a_busy_receiver_says_when_it_wants_to_be_asked(peer: TlsPeer, trust: ssl.SSLContext) -> None:
    peer.behavior = answer(b"", "503 Busy", "Retry-After: 120\r\n")
    done = sender(trust).send(url(peer), {}, b"{}")
    assert (done.status, done.retry_after_s) == (503, 120)
    peer.behavior = answer(b"", "503 Busy", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n")
    assert sender(trust).send(url(peer), {}, b"{}").retry_after_s is None


def test_an_endless_reply_is_cut(peer: TlsPeer, trust: ssl.SSLContext) -> None:
    sizes: list[int] = []

    def endless(exchange: object) -> None:
        exchange.request()  # type: ignore[attr-defined]
        exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")  # type: ignore[attr-defined]
        chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        try:
            while True:
                exchange.send(chunk)  # type: ignore[attr-defined]
                sizes.append(len(chunk))
        except OSError:
            return

    peer.behavior = endless
    assert sender(trust).send(url(peer), {}, b"{}").taken
    peer.last()
    assert sum(sizes) < 100 * MAX_REPLY_BYTES  # what the sockets' buffers hold, and no more


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"])
def test_a_broken_reply_is_a_failure_without_the_receivers_words(peer: TlsPeer, trust: ssl.SSLContext, reply: bytes) -> None:
    peer.behavior = raw(reply)
    done = sender(trust).send(url(peer), {}, b"{}")
    assert not done.taken
    assert done.problem
    assert "nonsense" not in done.problem


def test_a_receiver_that_trickles_is_left(peer: TlsPeer, trust: ssl.SSLContext) -> None:
    clock = [0.0]

    def trickle(exchange: object) -> None:
        exchange.request()  # type: ignore[attr-defined]
        try:
            while True:
                exchange.send(b"X")  # type: ignore[attr-defined]
                clock[0] += 1
                exchange.pause(0.005)  # type: ignore[attr-defined]
        except OSError:
            return

    peer.behavior = trickle
    slow = Sender(LOOPBACK, trust, lambda _host, _port: ["127.0.0.1"], lambda: clock[0])
    assert slow.send(url(peer), {}, b"{}").problem == "no whole answer within 20 s"
    assert clock[0] < 100


def test_many_addresses_do_not_prolong_a_request(peer: TlsPeer, trust: ssl.SSLContext) -> None:
    """Each step has its own bound; the whole request has one as well, also while it looks for an address that answers."""
    moments = iter([0.0, WHOLE_S + 1.0])
    silent = Sender(networks(["127.0.0.0/8"]), trust, lambda _host, _port: ["127.0.0.1"] * 4, lambda: next(moments))
    attempt = silent.send(url(peer), {}, b"{}")
    assert attempt.status is None and attempt.problem == f"no whole answer within {WHOLE_S:.0f} s"


def test_nobody_there(trust: ssl.SSLContext, tmp_path: Path, receiver: Entity) -> None:
    with TlsPeer(tmp_path, receiver) as peer:
        address = url(peer)
    assert sender(trust).send(address, {}, b"{}").problem == "the connection is refused"

    def unknown(_host: str, _port: int) -> list[str]:
        raise OSError("no such name")

    assert "cannot be resolved" in Sender(LOOPBACK, trust, unknown).send(address, {}, b"{}").problem
