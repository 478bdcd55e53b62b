"""Fetches through the link, the updater's only way to a network. What the link sends is parsed as strictly as hostile input.

The updater does one thing after another, so this client blocks; the core's, which may not, is `agentd.uplink.linkclient`.
"""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.text import forbidden_in
from ipc.errors import LocalProtocolError, RemoteProtocolError
from ipc.frames import FrameDecoder
from ipc.linkmessages import (
    ANSWER_HEADERS,
    LINK_MAX_FRAME_BYTES,
    LINK_VERSION,
    MAX_TIMEOUT_MS,
    Chunk,
    End,
    FailCode,
    Failed,
    Fetch,
    Head,
    Hello,
    Ready,
    check_fetch,
    encode_link,
    from_link_decoder,
)
from ipc.messages import Request
from ipc.peer import UntrustedDaemon, check_daemon
from ipc.updatermessages import UpdaterCode

from .clock import Clock
from .failures import UpdateFailed, from_link
from .pace import Watch

UPSTREAM = "ota"
_READ_BYTES = 256 * 1024


class Answer:
    """A response that is still arriving.

    Attributes:
        status: of HTTP.
        headers: by lower-case name; only those that the link passes on.
    """

    def __init__(self, session: "LinkSession", head: Head, max_body: int, watch: Watch) -> None:
        self._session = session
        self._max_body = max_body
        self._watch = watch
        self.status = head.status
        self.headers: Mapping[str, str] = dict(head.headers)

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces of at most 32 KiB; the server waits while the caller does.

        Raises:
            UpdateFailed: the body does not come to its end.
        """
        size = 0
        while True:
            message = self._session.receive((Chunk, End), self._watch)
            if isinstance(message, Chunk):
                size += len(message.data)
                if size > self._max_body:
                    raise UpdateFailed(UpdaterCode.LINK, "the link sent more than was asked for")
                yield message.data
            elif message.size != size:
                raise UpdateFailed(UpdaterCode.LINK, "the link lost a part of the answer")
            else:
                self._session.settled()
                return


class LinkSession:
    """A connection to the link. `open_link` makes it."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._sock = sock
        self._clock = clock
        self._frames = FrameDecoder(LINK_MAX_FRAME_BYTES)
        self._waiting: list[bytes] = []
        self._decode = from_link_decoder().decode
        self._last_id = 1
        self._open_exchange = False

    def hello(self, now: int) -> None:
        """Begins the connection.

        Args:
            now: a time that has certainly passed, seconds since 1970 UTC.

        Raises:
            UpdateFailed: the link does not accept it.
        """
        self._send(Hello(v=LINK_VERSION, id=1, time=now, certificates=None, provisioning=None, latest=None))
        self.receive((Ready,), Watch(self._clock.monotonic()))

    @contextmanager
    def get(
        self, path: str, headers: Mapping[str, str], max_body: int, watch: Watch, timeout_ms: int = MAX_TIMEOUT_MS
    ) -> Iterator[Answer]:
        """Performs a request. A session whose answer was not read to its end cannot be used any more.

        Args:
            path: under the repository's base, beginning with '/'.
            headers: of the closed list in `ipc.linkmessages.RequestHeader`.
            max_body: most bytes of the answer, up to 64 MiB.
            watch: the least rate.
            timeout_ms: for all of it.

        Raises:
            UpdateFailed: no whole head came.
        """
        if self._open_exchange:
            raise UpdateFailed(UpdaterCode.LINK, "an answer of the link was not read to its end")
        self._last_id += 1
        fetch = Fetch(
            v=LINK_VERSION,
            id=self._last_id,
            upstream="ota",
            method="GET",
            path=path,
            headers=tuple(headers.items()),  # type: ignore[arg-type]  # `check_fetch` and the link's decoder judge the names
            body=b"",
            max_body=max_body,
            timeout_ms=timeout_ms,
        )
        self._open_exchange = True
        self._send(fetch)
        yield Answer(self, self.receive((Head,), watch), max_body, watch)

    def settled(self) -> None:
        """The answer under way has ended; the next request may go."""
        self._open_exchange = False

    def receive(self, kinds: tuple[type[Request], ...], watch: Watch) -> Any:
        """The next message, which must answer the last request and be of one of these kinds.

        Raises:
            UpdateFailed: it is anything else, or none comes in time.
        """
        message = self._next(watch)
        if isinstance(message, Failed) and message.id in (self._last_id, 0):
            if message.code is not FailCode.MALFORMED and message.id == self._last_id:
                self.settled()
            raise from_link(message.code, _clean(message.text))
        if message.id != self._last_id or not isinstance(message, kinds):
            raise UpdateFailed(UpdaterCode.LINK, f"the link sent {type(message).__name__} out of turn")
        if isinstance(message, Head):
            names = [name for name, _ in message.headers]
            if not ANSWER_HEADERS.issuperset(names) or len(set(names)) != len(names):
                raise UpdateFailed(UpdaterCode.LINK, "the link sent a header that is not on its list")
        return message

    def _next(self, watch: Watch) -> Any:
        try:
            while not self._waiting:
                # At least a little: 0 would make the socket one that does not block.
                self._sock.settimeout(watch.left(self._clock.monotonic()) + 0.05)
                data = self._sock.recv(_READ_BYTES)
                if not data:
                    raise UpdateFailed(UpdaterCode.LINK, "the link broke off")
                self._waiting = self._frames.receive_data(data)
            return self._decode(self._waiting.pop(0))
        except TimeoutError:
            watch.received(0, self._clock.monotonic())
            raise UpdateFailed(UpdaterCode.SLOW, "the link sent nothing in time") from None
        except OSError:
            raise UpdateFailed(UpdaterCode.LINK, "the link broke off") from None
        except RemoteProtocolError as error:
            raise UpdateFailed(UpdaterCode.LINK, f"the link sent a malformed message: {_clean(error.text)}") from None

    def _send(self, message: Hello | Fetch) -> None:
        try:
            if isinstance(message, Fetch):
                check_fetch(message)
            self._sock.settimeout(10.0)
            self._sock.sendall(encode_link(message))
        except LocalProtocolError as error:
            raise UpdateFailed(
                UpdaterCode.METADATA, f"the repository has a name that cannot be asked for: {error.text}"
            ) from None
        except OSError:
            raise UpdateFailed(UpdaterCode.LINK, "the link does not accept the request") from None


@contextmanager
def open_link(path: Path, now: int, clock: Clock, trusted_uids: frozenset[int]) -> Iterator[LinkSession]:
    """A session with the link, for the length of a block.

    Args:
        path: the link's socket.
        now: a time that has certainly passed, seconds since 1970 UTC: a certificate that ended before it is refused.
        clock: seconds that pass.
        trusted_uids: who may serve the socket and own its directory.

    Raises:
        UpdateFailed: no link answers, it cannot be trusted, or it refuses.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.settimeout(10.0)
            sock.connect(str(path))
            check_daemon(sock, str(path), trusted_uids)
        except OSError as error:
            raise UpdateFailed(UpdaterCode.LINK, f"no link answers at {path}: {error.strerror or error}") from None
        except UntrustedDaemon as error:
            raise UpdateFailed(UpdaterCode.LINK, f"the link cannot be trusted: {error}"[:500]) from None
        session = LinkSession(sock, clock)
        session.hello(now)
        yield session


def _clean(text: str) -> str:
    """Text that may go to a log and a terminal: the link's words may come from a hostile network."""
    return "".join(character if forbidden_in(character) is None else "?" for character in text[:400])
