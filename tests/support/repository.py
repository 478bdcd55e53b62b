"""What a download needs in place of a network: a source that answers as a test says, and a clock that no time passes in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ipc.byteranges import parse_range
from ipc.linkmessages import CHUNK_BYTES
from updater.pace import Watch


class StillClock:
    """A clock that moves when somebody sleeps, or the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@dataclass
class Response:
    """An answer of the other side of the link.

    Attributes:
        pieces: the body; a callable among them runs before the next piece: it may raise what breaks the answer off.
    """

    status: int
    headers: dict[str, str]
    pieces: list[bytes | Callable[[], None]]

    def chunks(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if callable(piece):
                piece()
            else:
                yield piece


@dataclass
class Repository:
    """Files that support ranges, as nginx does it; `spoil` may change an answer.

    Attributes:
        asked: path and headers of each request.
    """

    files: dict[str, bytes]
    etag: str | None = '"tag-1"'
    ranges: bool = True
    spoil: Callable[["Repository", Response], Response] = lambda _, response: response
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @contextmanager
    def get(self, path: str, headers: dict[str, str], max_body: int, watch: Watch, timeout_ms: int = 0) -> Iterator[Response]:
        self.asked.append((path, headers))
        yield self.spoil(self, self._answer(path, headers))

    def _answer(self, path: str, headers: dict[str, str]) -> Response:
        if path not in self.files:
            return Response(404, {}, [])
        data, found = self.files[path], {} if self.etag is None else {"etag": self.etag}
        part = parse_range(headers.get("range", ""))
        if part is None or not self.ranges or headers.get("if-range", self.etag) != self.etag:
            return Response(200, {**found, "content-length": str(len(data))}, _cut(data))
        if part.first >= len(data):
            return Response(416, {}, [])
        last = min(part.last, len(data) - 1)
        found["content-range"] = f"bytes {part.first}-{last}/{len(data)}"
        return Response(206, found, _cut(data[part.first : last + 1]))


def _cut(data: bytes) -> list[bytes | Callable[[], None]]:
    return [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
