"""The installer's door: whom it hears, and what becomes of anything that is no order."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.uplink.linkclient import READY_TIMEOUT_S
from agentd.uplink.transport import TIMEOUT_S
from installer import VERSION
from installer.machine import Machine
from installer.main import IDLE_S, serve
from installer.orders import ORDERS, answer
from ipc.frames import FrameDecoder
from ipc.installermessages import (
    INSTALLER_MAX_FRAME_BYTES,
    INSTALLER_VERSION,
    Describe,
    Description,
    Prepare,
    Prepared,
    ProductList,
    Products,
    Progress,
    Refused,
    Switch,
    encode_installer,
    from_installer_decoder,
)
from tests.support.bundles import version
from tests.support.installing import Till
from tests.support.stagedupdates import stage
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system


def asked(path: Path, data: bytes) -> Any:
    """Returns the last message that comes back; None if none does."""
    messages = all_of(path, data)
    return messages[-1] if messages else None


def _received(sock: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(65536)
    return b""


def all_of(path: Path, data: bytes) -> list[Any]:
    found = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(READY_S)
        sock.connect(str(path))
        # Another user is answered and cut off without being heard, maybe before this is sent.
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(data)
        decoder = FrameDecoder(INSTALLER_MAX_FRAME_BYTES)
        # An unread order makes the end of the connection a reset.
        while received := _received(sock):
            for frame in decoder.receive_data(received):
                found.append(from_installer_decoder().decode(frame))
    return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    yield from _served(tmp_path, os.geteuid())


@pytest.fixture
def served_for_another(tmp_path: Path) -> Iterator[Path]:
    yield from _served(tmp_path, os.geteuid() + 1)


def _served(tmp_path: Path, core_uid: int) -> Iterator[Path]:
    path = tmp_path / "installer.sock"
    till = Till(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener, core_uid, 0.3, till.machine()))
        thread.start()
        yield path
        thread.join(READY_S)
        assert not thread.is_alive(), "it did not leave when idle"


def test_the_core_learns_what_it_can_order(served: Path) -> None:
    told = asked(served, encode_installer(Describe(v=INSTALLER_VERSION, id=7)))
    assert told == Description(v=INSTALLER_VERSION, id=7, program=VERSION, orders=ORDERS)


def test_an_order_is_carried_out_with_its_progress(served: Path) -> None:
    staging = served.parent / "staging"
    sha256 = stage(staging, "1.0", version("1.0"))
    prepare = encode_installer(Prepare(v=INSTALLER_VERSION, id=8, product="pos", sha256=sha256))
    messages = all_of(served, prepare)
    assert messages[-1] == Prepared(v=INSTALLER_VERSION, id=8, version="1.0", build_id="b1.0")
    assert len(messages) > 2 and all(isinstance(each, Progress) and each.id == 8 for each in messages[:-1])
    with socket.socket(socket.AF_UNIX) as sock:  # a core that goes at once is no reason to stop
        sock.connect(str(served))
        sock.sendall(encode_installer(Switch(v=INSTALLER_VERSION, id=9, product="pos", sha256=sha256)))
    state = asked(served, encode_installer(Products(v=INSTALLER_VERSION, id=1)))
    assert isinstance(state, ProductList) and state.products[0].state == "switched"


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


def _unused(*_: object) -> Any:
    raise AssertionError("an order by chance")


NOTHING: Machine = SimpleNamespace(config=_unused)  # type: ignore[assignment]


@given(st.binary(max_size=200))
def test_any_bytes_are_answered_without_an_error(frame: bytes) -> None:
    assert isinstance(answer(frame, NOTHING, lambda _: None), Refused | Description)


def test_the_installer_stays_while_the_core_asks_a_server_that_does_not_answer() -> None:
    """With the same time as the link's, it left just when the core ordered the switch, and again at each repetition."""
    assert IDLE_S > READY_TIMEOUT_S + TIMEOUT_S
