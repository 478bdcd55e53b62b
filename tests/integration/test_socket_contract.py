"""Both sockets keep one contract: what is accepted is answered, in order; what ends a connection comes last, with its code."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from license_agent_client import ErrorCode
from license_agent_client.bounds import MAX_FRAME_BYTES, MIN_CONNECTS_PER_S
from license_agent_client.clientwire import encode_request
from license_agent_client.frames import FrameDecoder, encode_frame

from tests.support.daemon import Bench, furnished
from tests.support.waiting import READY_S

SOCKETS = ("pos", "admin")
PIPELINED = 60


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with furnished() as made:
        # All of these tests together are more than one user may ask in a second.
        made.write_raw_config(made.config.read_text().replace("[pos]\n", "[pos]\nrate_per_s = 100000\n"))
        with made.running():
            yield made


@pytest.fixture(params=SOCKETS)
def path(bench: Bench, request: pytest.FixtureRequest) -> Path:
    return bench.run_dir / f"{request.param}.sock"


class Peer:
    """A connection whose replies are read as they come."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(READY_S)
        # Slower than the agent closes the connections of a process that makes too many (half of MIN_CONNECTS_PER_S).
        time.sleep(3 / MIN_CONNECTS_PER_S)
        self.sock.connect(str(path))
        self._decoder = FrameDecoder()
        self._frames: list[bytes] = []

    def send(self, *frames: bytes) -> None:
        self.sock.sendall(b"".join(frames))

    def reply(self) -> tuple[int | None, int]:
        """Id and error code of the next reply; 0 for a success."""
        while not self._frames:
            data = self.sock.recv(65_536)
            assert data, "the connection ended without a reply"
            self._frames += self._decoder.receive_data(data)
        message = msgpack.unpackb(self._frames.pop(0))
        return message["id"], message["error"]["code"] if "error" in message else 0

    def ended(self) -> bool:
        return not self._frames and self.sock.recv(1) == b""

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def peer(path: Path) -> Iterator[Peer]:
    made = Peer(path)
    yield made
    made.close()


def ping(number: int) -> bytes:
    return encode_request("ping", number, {})


def pings(peer: Peer, first: int, last: int) -> None:
    assert [peer.reply() for _ in range(first, last)] == [(number, 0) for number in range(first, last)]


def test_all_that_is_pipelined_is_answered_in_order(peer: Peer) -> None:
    peer.send(*map(ping, range(PIPELINED)))
    pings(peer, 0, PIPELINED)
    peer.send(ping(99))
    assert peer.reply() == (99, 0)


ENDS = {
    "no MessagePack": (encode_frame(b"\xc1"), ErrorCode.BAD_MESSAGE),
    "no map": (encode_frame(msgpack.packb([1, 2])), ErrorCode.BAD_MESSAGE),
    "too large": ((MAX_FRAME_BYTES + 1).to_bytes(4, "big"), ErrorCode.FRAME_TOO_LARGE),
    "empty": (bytes(4), ErrorCode.FRAME_TOO_LARGE),
}


@pytest.mark.parametrize("before", [0, 1, 15, 16, 17, 40])
@pytest.mark.parametrize("what", ENDS)
def test_what_ends_the_stream_is_told_after_the_replies(peer: Peer, what: str, before: int) -> None:
    frame, code = ENDS[what]
    peer.send(*map(ping, range(before)), frame, ping(1000))
    pings(peer, 0, before)
    assert peer.reply() == (None, code)
    assert peer.ended()


KEPT = {
    "unknown operation": ({"v": 1, "id": 50, "op": "nonsense"}, ErrorCode.UNKNOWN_OP),
    "unknown version": ({"v": 9, "id": 50, "op": "ping"}, ErrorCode.UNSUPPORTED_VERSION),
    "unknown member": ({"v": 1, "id": 50, "op": "ping", "x": 1}, ErrorCode.BAD_REQUEST),
}


@pytest.mark.parametrize("what", KEPT)
def test_a_request_that_is_refused_keeps_its_place_and_the_connection(peer: Peer, what: str) -> None:
    fields, code = KEPT[what]
    peer.send(ping(1), encode_frame(msgpack.packb(fields)), ping(2))
    assert [peer.reply() for _ in range(3)] == [(1, 0), (50, code), (2, 0)]
    peer.send(ping(3))
    assert peer.reply() == (3, 0)


def test_a_slow_request_is_answered_before_the_error_that_ends_the_stream(bench: Bench) -> None:
    peer = Peer(bench.run_dir / "admin.sock")
    peer.send(encode_request("audit_verify", 1, {}), ping(2), encode_frame(b"\xc1"))
    assert [peer.reply() for _ in range(3)] == [(1, 0), (2, 0), (None, ErrorCode.BAD_MESSAGE)]
    assert peer.ended()
    peer.close()


LATE = """
import os, socket, sys, time
os.setgroups([]); os.setgid(64993); os.setuid(64993)
sock = socket.socket(socket.AF_UNIX); sock.settimeout(60); sock.connect(sys.argv[1])
try:
    for _ in range(1000):
        sock.sendall(b"\\0\\0\\0\\1x")
        time.sleep(0.001)
except (BrokenPipeError, ConnectionResetError) as error:
    print(type(error).__name__)
print(sock.recv(4096).hex())
"""


@pytest.mark.root
def test_who_is_not_allowed_reads_why_after_a_write_that_failed(bench: Bench, path: Path) -> None:
    mode = path.stat().st_mode & 0o777
    path.chmod(0o666)
    try:
        done = subprocess.run(
            [sys.executable, "-c", LATE, str(path)], capture_output=True, text=True, check=True, timeout=READY_S
        )
    finally:
        path.chmod(mode)
    failed, reply = done.stdout.split()
    assert failed in ("BrokenPipeError", "ConnectionResetError")
    message = msgpack.unpackb(bytes.fromhex(reply)[4:])
    assert (message["id"], message["error"]["code"]) == (None, ErrorCode.FORBIDDEN)
    assert os.geteuid() == 0
