"""A peer who sends much is answered turn by turn; one that sends too much is left alone for a while; nothing is lost."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.sockets.connection import FRAMES_PER_TURN, Connection, Hub
from ipc.errors import ErrorCode
from ipc.frames import encode_frame
from ipc.peer import Peer


class Transport:
    """Keeps what is written, and whether it is read from."""

    def __init__(self) -> None:
        self.sent = b""
        self.reading = True
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def set_write_buffer_limits(self, high: int) -> None:
        assert high > 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


class Service:
    """Echoes each request; throttles where it is told to."""

    name = "pos"

    def __init__(self) -> None:
        self.handled: list[bytes] = []
        self.throttle_at: set[int] = set()
        self.rejections: list[ErrorCode] = []

    def admits(self, _peer: Peer) -> bool:
        return True

    def refused(self, _peer: Peer) -> bool:
        return True

    def connection_limit(self) -> int:
        return 5

    def rejected(self, _peer: Peer, code: ErrorCode) -> None:
        self.rejections.append(code)

    def reply_to_known(self, _frame: bytes, _peer: Peer, _now: float) -> bytes | None:
        return None

    def handle(self, body: bytes, connection: Connection) -> bytes:
        self.handled.append(body)
        if len(self.handled) in self.throttle_at:
            connection.throttle(0.001)
        return encode_frame(body)


class Line:
    """A connection over a transport of the test, within a running loop; takes the place of the audit log too."""

    def __init__(self) -> None:
        self.mono = 0.0
        self.pending = False
        self.flushed = 0
        self.service = Service()
        self.hub = Hub(lambda: self.mono, self)
        self.transport = Transport()
        self.connection = self.connect(self.transport)

    def flush(self) -> None:
        self.flushed += 1
        self.pending = False

    def connect(self, transport: Transport) -> Connection:
        made = Connection(self.hub, self.service, Peer(5, 5, 1))
        made.connection_made(transport)  # type: ignore[arg-type]
        return made


def run(check: Callable[[Line], Any]) -> None:
    async def main() -> None:
        await check(Line())

    asyncio.run(main())


BODIES = [b"%d" % number for number in range(FRAMES_PER_TURN * 5 + 3)]
STREAM = b"".join(map(encode_frame, BODIES))


def test_a_lot_at_once_is_answered_turn_by_turn() -> None:
    async def check(line: Line) -> None:
        line.connection.data_received(STREAM)
        assert len(line.service.handled) == FRAMES_PER_TURN
        assert not line.transport.reading
        other = Transport()
        line.connect(other).data_received(encode_frame(b"me"))
        assert other.sent == encode_frame(b"me")
        while not line.transport.reading:
            await asyncio.sleep(0)
        assert line.transport.sent == STREAM

    run(check)


def test_after_a_throttle_the_peer_is_not_read_from_for_a_while() -> None:
    async def check(line: Line) -> None:
        line.service.throttle_at = {3, 4, 20}
        line.connection.data_received(STREAM)
        assert len(line.service.handled) == 3
        assert line.transport.sent == b"".join(map(encode_frame, BODIES[:3]))
        await asyncio.sleep(0)
        assert len(line.service.handled) == 3
        # What was read before reading was paused comes after the rest.
        line.connection.data_received(encode_frame(b"late"))
        while not line.transport.reading:
            await asyncio.sleep(0.001)
        assert line.transport.sent == STREAM + encode_frame(b"late")

    run(check)


@given(
    st.lists(st.integers(1, len(STREAM) - 1), max_size=6, unique=True).map(sorted),
    st.sets(st.integers(1, len(BODIES)), max_size=3),
)
def test_however_it_is_cut_and_throttled_every_request_is_answered_once_and_in_order(
    cuts: list[int], throttles: set[int]
) -> None:
    async def check(line: Line) -> None:
        line.service.throttle_at = throttles
        for start, end in zip([0, *cuts], [*cuts, len(STREAM)], strict=True):
            line.connection.data_received(STREAM[start:end])
        while len(line.service.handled) < len(BODIES) or not line.transport.reading:
            await asyncio.sleep(0.0005)
        assert line.transport.sent == STREAM

    run(check)


def test_an_error_after_many_requests_comes_after_their_answers() -> None:
    async def check(line: Line) -> None:
        line.connection.data_received(STREAM + b"\xff\xff\xff\xff")
        while not line.transport.closed:
            await asyncio.sleep(0)
        assert line.transport.sent.startswith(STREAM)
        assert line.service.rejections == [ErrorCode.FRAME_TOO_LARGE]

    run(check)


def test_a_peer_that_goes_while_it_is_left_alone_is_forgotten() -> None:
    async def check(line: Line) -> None:
        line.service.throttle_at = {1}
        line.connection.data_received(STREAM)
        line.connection.connection_lost(None)
        await asyncio.sleep(0.005)
        assert len(line.service.handled) == 1
        assert not line.hub.connections

    run(check)


def test_a_peer_that_does_not_take_replies_is_not_read_from_when_its_turn_ends() -> None:
    async def check(line: Line) -> None:
        line.connection.data_received(STREAM)
        line.connection.pause_writing()
        for _ in range(20):
            await asyncio.sleep(0)
        assert line.transport.sent == STREAM
        assert not line.transport.reading
        line.connection.resume_writing()
        assert line.transport.reading

    run(check)


def test_who_is_alone_does_not_wait_for_the_end_of_the_tick() -> None:
    async def check(line: Line) -> None:
        line.pending = True
        line.connection.data_received(encode_frame(b"1"))
        assert (line.flushed, line.transport.sent) == (0, b"")
        line.pending = False
        line.hub.release()
        line.pending = True
        line.connection.data_received(encode_frame(b"2"))
        assert (line.flushed, line.transport.sent) == (1, encode_frame(b"1") + encode_frame(b"2"))

    run(check)


def test_administrators_get_in_however_many_tills_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(line: Line) -> None:
        monkeypatch.setattr("agentd.sockets.connection.MAX_CONNECTIONS", 1)
        line.connect(Transport())
        assert line.service.rejections == [ErrorCode.RATE_LIMITED]
        line.service.name = "admin"
        line.connect(Transport())
        assert len(line.service.rejections) == 1

    run(check)
