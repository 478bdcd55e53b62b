"""The installer's door: whom it hears, and what becomes of anything that is no order."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer import VERSION
from installer.main import serve
from installer.orders import ORDERS, answer
from ipc.frames import FrameDecoder
from ipc.installermessages import (
    INSTALLER_MAX_FRAME_BYTES,
    INSTALLER_VERSION,
    Describe,
    Description,
    Refused,
    encode_installer,
    from_installer_decoder,
)
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system


def asked(path: Path, data: bytes) -> Description | Refused | None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(READY_S)
        sock.connect(str(path))
        # Another user is answered and cut off without being heard, maybe before this is sent.
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(data)
        decoder = FrameDecoder(INSTALLER_MAX_FRAME_BYTES)
        while received := sock.recv(65536):
            for frame in decoder.receive_data(received):
                message: Description | Refused = from_installer_decoder().decode(frame)
                return message
    return None


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    yield from _served(tmp_path, os.geteuid())


@pytest.fixture
def served_for_another(tmp_path: Path) -> Iterator[Path]:
    yield from _served(tmp_path, os.geteuid() + 1)


def _served(tmp_path: Path, core_uid: int) -> Iterator[Path]:
    path = tmp_path / "installer.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener, core_uid, 0.3))
        thread.start()
        yield path
        thread.join(READY_S)
        assert not thread.is_alive(), "it did not leave when idle"


def test_the_core_learns_that_nothing_can_be_ordered_yet(served: Path) -> None:
    told = asked(served, encode_installer(Describe(v=INSTALLER_VERSION, id=7)))
    assert told == Description(v=INSTALLER_VERSION, id=7, program=VERSION, orders=())
    assert ORDERS == ()


def test_another_user_is_refused_unheard(served_for_another: Path) -> None:
    told = asked(served_for_another, encode_installer(Describe(v=INSTALLER_VERSION, id=7)))
    assert isinstance(told, Refused)
    assert "only the agent may use the installer's socket" in told.text


@pytest.mark.parametrize(
    "body",
    [
        {"v": 1, "id": 3, "op": "install", "path": "/tmp/evil.deb"},
        {"v": 2, "id": 3, "op": "describe"},
        {"v": 1, "id": 3, "op": "describe", "more": 1},
        {"v": 1, "id": 3},
    ],
)
def test_what_is_no_order_is_declined_and_the_next_one_heard(served: Path, body: dict[str, object]) -> None:
    frame = msgspec.msgpack.encode(body)
    told = asked(served, len(frame).to_bytes(4, "big") + frame)
    assert isinstance(told, Refused), told
    assert isinstance(asked(served, encode_installer(Describe(v=INSTALLER_VERSION, id=1))), Description)


def test_a_frame_beyond_the_ceiling_is_declined(served: Path) -> None:
    told = asked(served, (INSTALLER_MAX_FRAME_BYTES + 1).to_bytes(4, "big") + b"x" * 100)
    assert isinstance(told, Refused)


def test_half_an_order_disturbs_nobody(served: Path) -> None:
    assert asked_half(served) == b""
    assert isinstance(asked(served, encode_installer(Describe(v=INSTALLER_VERSION, id=1))), Description)


def asked_half(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(READY_S)
        sock.connect(str(path))
        sock.sendall(encode_installer(Describe(v=INSTALLER_VERSION, id=1))[:6])
        sock.shutdown(socket.SHUT_WR)
        return sock.recv(100)


@given(st.binary(max_size=200))
def test_any_bytes_are_answered_without_an_error(frame: bytes) -> None:
    assert isinstance(answer(frame), Refused | Description)
