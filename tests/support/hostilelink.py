"""A link that was taken over: it speaks the core's protocol at the link's socket, and does with each request what a test says.

It has what a real link has: the hello with its key, all requests and answers in clear, and the real link to reach the server.
"""

import array
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from contracts.jose import b64decode, b64encode
from ipc.frames import FrameDecoder
from ipc.linkmessages import (
    CHUNK_BYTES,
    LINK_MAX_FRAME_BYTES,
    LINK_VERSION,
    Chunk,
    End,
    FailCode,
    Failed,
    Fetch,
    Head,
    Hello,
    Ready,
    encode_link,
    from_link_decoder,
    to_link_decoder,
)
from tests.support.acceptor import Acceptor
from tests.support.waiting import READY_S

API = "/api/v1/"


@dataclass(frozen=True)
class Reply:
    """An answer of HTTP, whole."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)

    @property
    def content(self) -> dict[str, Any]:
        """The body as JSON."""
        content: dict[str, Any] = json.loads(self.body)
        return content


@dataclass(frozen=True)
class Failure:
    """The link's own word that there is no answer."""

    code: FailCode = FailCode.UNREACHABLE
    text: str = "the server cannot be reached"


@dataclass(frozen=True)
class Raw:
    """Bytes on the socket, whatever they are; then the connection is closed."""

    data: bytes


Said = Reply | Failure | Raw | None
"""What the core is told; None closes the connection without a word."""


class Asked:
    """One request of the core.

    Attributes:
        fetch: the request.
        purpose: its path under the API: `rotate-secret`.
        said: what the core was told.
    """

    def __init__(self, fetch: Fetch, forward: Callable[[Fetch], Reply | Failure]) -> None:
        self.fetch = fetch
        self.purpose = fetch.path.removeprefix(API)
        self.said: Said = None
        self._forward = forward

    @property
    def body(self) -> dict[str, Any]:
        """The request's body as JSON."""
        body: dict[str, Any] = json.loads(self.fetch.body)
        return body

    @property
    def request(self) -> dict[str, Any]:
        """What the agent has signed."""
        return payload_of(self.body["request"])

    def forward(self, body: bytes | None = None) -> Reply | Failure:
        """The real answer, by the real link; may be asked for several times. With another body if one is given.

        Where earlier tests have used up what the server allows an agent in a second, it is asked for again.
        """
        fetch = self.fetch if body is None else msgspec.structs.replace(self.fetch, body=body)
        for _ in range(5):
            said = self._forward(fetch)
            if not isinstance(said, Reply) or said.status != 429:
                break
            time.sleep(1)
        return said


Behavior = Callable[[Asked], Said]


def honest(asked: Asked) -> Said:
    """What a link should do."""
    return asked.forward()


@dataclass
class Gate:
    """Where a thread waits until a test opens it."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """For the one who is held."""
        self.reached.set()
        self.opened.wait(READY_S)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """For the test: the block runs while the other is held."""
        try:
            assert self.reached.wait(READY_S), "nobody has come"
            yield
        finally:
            self.opened.set()


def once(purpose: str, behavior: Behavior) -> Behavior:
    """Behaves so at the first request with that purpose, honestly at all others."""
    done = threading.Event()

    def behave(asked: Asked) -> Said:
        if asked.purpose != purpose or done.is_set():
            return asked.forward()
        done.set()
        return behavior(asked)

    return behave


def always(purpose: str, behavior: Behavior) -> Behavior:
    """Behaves so at each request with that purpose, honestly at all others."""
    return lambda asked: behavior(asked) if asked.purpose == purpose else asked.forward()


class HostileLink:
    """Listens where the core expects its link, for the length of a `with` block.

    Args:
        path: of the socket.
        onward: the real link's socket; its core is the user of this process.

    Attributes:
        behavior: what it does with a request; may be changed at any time.
        rewrite: what it makes of a hello before the real link gets it.
        asked: all requests so far, with what was said to them.
        keys: PEM of client keys that it was given.
    """

    def __init__(self, path: Path, onward: Path) -> None:
        self.path = path
        self.behavior: Behavior = honest
        self.rewrite: Callable[[Hello], Hello] = lambda hello: hello
        self.asked: list[Asked] = []
        self.keys: list[tuple[str, bytes]] = []
        self._onward = onward
        listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(16)
        self._acceptor = Acceptor(listener, self._serve, 1.0)

    def __enter__(self) -> "HostileLink":
        self._acceptor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._acceptor.__exit__()

    @contextlib.contextmanager
    def behaving(self, behavior: Behavior) -> Iterator[None]:
        """Behaves so for the length of a block, honestly after it."""
        self.behavior = behavior
        try:
            yield
        finally:
            self.behavior = honest

    def of(self, purpose: str) -> list[Asked]:
        """All requests so far with that purpose."""
        return [asked for asked in self.asked if asked.purpose == purpose]

    def _serve(self, core: socket.socket) -> None:
        core.settimeout(READY_S)
        with core, contextlib.suppress(OSError, EOFError), socket.socket(socket.AF_UNIX) as onward:
            onward.settimeout(READY_S)
            hello, descriptors = _read_hello(core)
            try:
                if hello.certificates is not None and descriptors:
                    self.keys.append((hello.certificates, os.pread(descriptors[0], 65536, 0)))
                onward.connect(str(self._onward))
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
                onward.sendmsg([encode_link(self.rewrite(hello))], rights)
            finally:
                for number in descriptors:
                    os.close(number)
            answers = _Messages(onward, from_link_decoder().decode)
            ready = answers.next()
            core.sendall(encode_link(ready))
            if isinstance(ready, Ready):
                self._attend(core, answers, onward)

    def _attend(self, core: socket.socket, answers: "_Messages", onward: socket.socket) -> None:
        requests = _Messages(core, to_link_decoder().decode)
        count = 1

        def forward(fetch: Fetch) -> Reply | Failure:
            nonlocal count
            count += 1
            onward.sendall(encode_link(msgspec.structs.replace(fetch, id=count)))
            return _whole(answers)

        while True:
            asked = Asked(requests.next(), forward)
            self.asked.append(asked)
            asked.said = self.behavior(asked)
            if not _tell(core, asked.fetch.id, asked.said):
                return


class _Messages:
    """Reads one message after another."""

    def __init__(self, sock: socket.socket, decode: Callable[[bytes], Any]) -> None:
        self._sock = sock
        self._decode = decode
        self._frames = FrameDecoder(LINK_MAX_FRAME_BYTES)
        self._bodies: list[bytes] = []

    def next(self) -> Any:
        """The next one; EOFError at the end."""
        data = b""
        while not (bodies := self._frames.receive_data(data, 1)):
            if not (data := self._sock.recv(65536)):
                raise EOFError
        return self._decode(bodies[0])


def _read_hello(core: socket.socket) -> tuple[Hello, list[int]]:
    data, ancillary, _, _ = core.recvmsg(65536, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    frames = FrameDecoder(LINK_MAX_FRAME_BYTES)
    while not (bodies := frames.receive_data(data, 1)):
        if not (data := core.recv(65536)):
            raise EOFError
    hello: Hello = to_link_decoder().decode(bodies[0])
    return hello, list(descriptors)


def _whole(answers: _Messages) -> Reply | Failure:
    head = answers.next()
    if isinstance(head, Failed):
        return Failure(head.code, head.text)
    body = b""
    while True:
        message = answers.next()
        if isinstance(message, Failed):
            return Failure(message.code, message.text)
        if isinstance(message, End):
            return Reply(body, head.status, head.headers)
        body += message.data


def _tell(core: socket.socket, number: int, said: Said) -> bool:
    """Says it to the core; returns whether the connection goes on."""
    if said is None:
        return False
    if isinstance(said, Raw):
        core.sendall(said.data)
        return False
    if isinstance(said, Failure):
        core.sendall(encode_link(Failed(v=LINK_VERSION, id=number, code=said.code, text=said.text)))
        return True
    core.sendall(encode_link(Head(v=LINK_VERSION, id=number, status=said.status, headers=said.headers)))
    for start in range(0, len(said.body), CHUNK_BYTES):
        core.sendall(encode_link(Chunk(v=LINK_VERSION, id=number, data=said.body[start : start + CHUNK_BYTES])))
    core.sendall(encode_link(End(v=LINK_VERSION, id=number, size=len(said.body))))
    return True


# Pieces of JWS


def payload_of(jws: str) -> dict[str, Any]:
    """What a JWS says, unchecked."""
    content: dict[str, Any] = json.loads(b64decode(jws.split(".")[1]))
    return content


def with_payload(jws: str, **changes: Any) -> str:
    """The JWS with another content under the same signature."""
    header, _, signature = jws.split(".")
    return f"{header}.{b64encode(json.dumps(payload_of(jws) | changes).encode())}.{signature}"
