"""The core's side of the link's socket, against a link that says anything: hostile bytes are never an answer."""

import array
import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
import uvloop

from agentd.uplink import linkclient
from agentd.uplink.linkclient import FetchFailed, FetchReply, LinkClient, LinkUnavailable
from ipc.errors import LocalProtocolError
from ipc.frames import FrameDecoder
from ipc.linkmessages import (
    LINK_MAX_FRAME_BYTES,
    Chunk,
    End,
    FailCode,
    Failed,
    Fetch,
    Head,
    Hello,
    Ready,
    encode_link,
    to_link_decoder,
)
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

NOW = 1_893_456_000


def framed(message: Any) -> bytes:
    """A frame of anything."""
    body = message if isinstance(message, bytes) else msgpack.packb(message)
    return len(body).to_bytes(4, "big") + body


class FakeLink:
    """Answers each request with the next of the bytes it was given; keeps what it was sent."""

    def __init__(self, path: Path, answers: list[bytes], closes: bool) -> None:
        self.requests: list[Any] = []
        self.key: bytes | None = None
        self.key_fd = -1
        self._answers, self._closes = answers, closes
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with sock:
                    sock.settimeout(READY_S)
                    self._converse(sock)

    def _converse(self, sock: socket.socket) -> None:
        frames, decode = FrameDecoder(LINK_MAX_FRAME_BYTES), to_link_decoder().decode
        data, rights, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(4 * 4))
        for _, _, content in rights:
            (self.key_fd,) = array.array("i", content)
            self.key = os.pread(self.key_fd, 65536, 0)
        while data:
            for body in frames.receive_data(data):
                self.requests.append(decode(body))
                if self._answers:
                    sock.sendall(self._answers.pop(0))
                if self._closes and not self._answers:
                    return
            data = sock.recv(65536)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(READY_S)
        if self.key_fd >= 0:
            os.close(self.key_fd)
            self.key_fd = -1


READY = encode_link(Ready(v=1, id=1))
HEAD = encode_link(Head(v=1, id=2, status=200, headers=(("etag", "x"),)))
END = encode_link(End(v=1, id=2, size=0))


@pytest.fixture
def link(socket_dir: Path) -> Iterator[Callable[..., FakeLink]]:
    made: list[FakeLink] = []

    def start(*answers: bytes, closes: bool = False) -> FakeLink:
        made.append(FakeLink(socket_dir / "link.sock", list(answers), closes))
        return made[-1]

    yield start
    for fake in made:
        fake.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return asyncio.run if request.param == "asyncio" else uvloop.run


async def ask(directory: Path, headers: Mapping[str, str] | None = None, **options: Any) -> FetchReply:
    async with LinkClient(directory / "link.sock").session(NOW) as session:
        return await session.fetch("server", "POST", "/a", b"body", headers, **options)


def test_a_fetch_is_asked_for_and_its_answer_put_together(link: Any, run: Any, socket_dir: Path) -> None:
    chunks = [encode_link(Chunk(v=1, id=2, data=bytes([number]) * 32768)) for number in range(9)]
    fake = link(READY, HEAD + b"".join(chunks) + encode_link(End(v=1, id=2, size=9 * 32768)))
    reply = run(ask(socket_dir, {"content-type": "application/jose"}, max_body=9 * 32768, timeout_s=1.5))
    assert (reply.status, reply.headers) == (200, {"etag": "x"})
    assert reply.body == b"".join(bytes([number]) * 32768 for number in range(9))
    hello, fetch = fake.requests
    assert hello == Hello(v=1, id=1, time=NOW, certificates=None, provisioning=None, latest=0)
    assert fetch == Fetch(
        v=1,
        id=2,
        upstream="server",
        method="POST",
        path="/a",
        headers=(("content-type", "application/jose"),),
        body=b"body",
        max_body=9 * 32768,
        timeout_ms=1500,
    )


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_key_goes_along_as_a_sealed_memfd(link: Any, run: Any, socket_dir: Path, kind: Any) -> None:
    fake = link(READY)

    async def work() -> None:
        key = kind(b"the key")
        async with LinkClient(socket_dir / "link.sock").session(NOW, "certificates", key):
            assert fake.key == b"the key"
            with pytest.raises(PermissionError):
                os.write(fake.key_fd, b"x")
            with pytest.raises(PermissionError):
                os.ftruncate(fake.key_fd, 0)

    run(work())
    fake.close()
    assert not any("memfd" in target for target in map(_target, os.listdir("/proc/self/fd")))


def _target(number: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


HOSTILE = {
    "closes": b"",
    "no frame": b"\x00\x00\x00\x00",
    "huge frame": b"\x7f\xff\xff\xff",
    "no map": framed(b"\xc1"),
    "unknown op": framed({"v": 1, "op": "shell", "id": 2}),
    "surplus field": framed({"v": 1, "op": "end", "id": 2, "size": 0, "x": 1}),
    "another request": encode_link(Head(v=1, id=3, status=200, headers=())),
    "the hello again": READY,
    "chunk before head": encode_link(Chunk(v=1, id=2, data=b"x")),
    "end before head": END,
    "a status below": framed({"v": 1, "op": "head", "id": 2, "status": 101, "headers": []}),
    "a header not on the list": framed({"v": 1, "op": "head", "id": 2, "status": 200, "headers": [["set-cookie", "x"]]}),
    "a header twice": framed({"v": 1, "op": "head", "id": 2, "status": 200, "headers": [["etag", "x"], ["etag", "y"]]}),
    "two heads": HEAD + HEAD,
    "cut": HEAD + encode_link(Chunk(v=1, id=2, data=b"x")),
    "a lost part": HEAD + encode_link(End(v=1, id=2, size=5)),
    "an empty chunk": HEAD + framed({"v": 1, "op": "chunk", "id": 2, "data": b""}),
    "a long chunk": HEAD + framed({"v": 1, "op": "chunk", "id": 2, "data": bytes(32769)}),
    "more than asked for": HEAD + encode_link(Chunk(v=1, id=2, data=bytes(11))),
    "unknown failure": framed({"v": 1, "op": "failed", "id": 2, "code": "refused", "text": ""}),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_link_is_unavailable(link: Any, run: Any, socket_dir: Path, kind: str) -> None:
    link(READY, HOSTILE[kind], closes=kind in ("closes", "cut"))

    async def work() -> None:
        async with LinkClient(socket_dir / "link.sock").session(NOW) as session:
            with pytest.raises(LinkUnavailable):
                # Long before the link's own deadline.
                await asyncio.wait_for(session.fetch("server", "GET", "/a", max_body=10, timeout_s=2 * READY_S), READY_S)
            with pytest.raises(LinkUnavailable, match="not read to its end"):
                await session.fetch("server", "GET", "/b")

    run(work())


def test_a_link_that_hangs_is_unavailable(link: Any, run: Any, socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkclient, "GRACE_S", 0.05)
    link(READY, HEAD + encode_link(Chunk(v=1, id=2, data=b"x")))
    with pytest.raises(LinkUnavailable, match="not answer in time"):
        run(ask(socket_dir, timeout_s=0.1))


def test_a_link_that_says_nothing_to_a_hello_is_unavailable(
    link: Any, run: Any, socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linkclient, "READY_TIMEOUT_S", 0.1)
    link()
    with pytest.raises(LinkUnavailable, match="not answer in time"):
        run(ask(socket_dir))


def test_a_failure_is_told_and_the_session_goes_on(link: Any, run: Any, socket_dir: Path) -> None:
    failed = encode_link(Failed(v=1, id=2, code=FailCode.TIMEOUT, text="no\x1b[31manswer"))
    again = [encode_link(Head(v=1, id=3, status=204, headers=())) + encode_link(End(v=1, id=3, size=0))]
    link(READY, failed, *again)

    async def work() -> None:
        async with LinkClient(socket_dir / "link.sock").session(NOW) as session:
            with pytest.raises(FetchFailed, match="timeout") as caught:
                await session.fetch("server", "GET", "/a")
            assert (caught.value.code, caught.value.text) == (FailCode.TIMEOUT, "no?[31manswer")
            assert (await session.fetch("server", "GET", "/a")).status == 204

    run(work())


def test_a_refused_hello_is_told(link: Any, run: Any, socket_dir: Path) -> None:
    link(encode_link(Failed(v=1, id=0, code=FailCode.NOT_ALLOWED, text="for the agent alone")))
    with pytest.raises(FetchFailed, match="for the agent alone"):
        run(ask(socket_dir))


@pytest.mark.parametrize(
    "request_",
    [
        ("elsewhere", "GET", "/a"),
        ("server", "DELETE", "/a"),
        ("server", "GET", "a"),
        ("server", "GET", "/a\r\nHost: b"),
        ("server", "GET", "//127.0.0.1/a"),
        ("server", "GET", "/a", b"body"),
        ("server", "POST", "/a", bytes(65537)),
        ("server", "POST", "/a", b"", {"host": "b"}),
        ("server", "POST", "/a", b"", {"accept": "a\r\nb: c"}),
        ("server", "POST", "/a", b"", {"accept": "a\n"}),
        ("server", "GET", "/a", b"", {}, 64 * 2**20 + 1),
        ("server", "GET", "/a", b"", {}, 1, 0.01),
    ],
)
def test_what_may_not_be_asked_for_is_not_sent(link: Any, run: Any, socket_dir: Path, request_: tuple[Any, ...]) -> None:
    fake = link(READY)

    async def work() -> None:
        async with LinkClient(socket_dir / "link.sock").session(NOW) as session:
            with pytest.raises(LocalProtocolError):
                await session.fetch(*request_)

    run(work())
    assert len(fake.requests) == 1


def test_a_key_without_certificate_is_not_sent(run: Any, socket_dir: Path) -> None:
    async def work(*arguments: Any) -> None:
        async with LinkClient(socket_dir / "link.sock").session(NOW, *arguments):
            pass

    for arguments in ((None, b"key"), ("certificate", None)):
        with pytest.raises(LocalProtocolError):
            run(work(*arguments))


def test_an_absent_or_dead_link_is_unavailable(run: Any, socket_dir: Path) -> None:
    with pytest.raises(LinkUnavailable, match="no link answers"):
        run(ask(socket_dir))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(socket_dir / "link.sock"))
    with pytest.raises(LinkUnavailable, match="no link answers"):
        run(ask(socket_dir))


def test_a_directory_that_others_may_write_to_is_not_trusted(link: Any, run: Any, socket_dir: Path) -> None:
    fake = link(READY)
    socket_dir.chmod(0o777)
    with pytest.raises(LinkUnavailable, match="cannot be trusted"):
        run(ask(socket_dir))
    assert fake.requests == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_a_stranger_is_not_trusted(link: Any, run: Any, socket_dir: Path) -> None:
    link(READY, HEAD + END)
    os.chown(socket_dir, 54321, 54321)
    with pytest.raises(LinkUnavailable, match="uid 54321"):
        run(ask(socket_dir))

    async def work() -> None:
        async with LinkClient(socket_dir / "link.sock", 54321).session(NOW) as session:
            assert (await session.fetch("server", "GET", "/a")).status == 200

    run(work())
