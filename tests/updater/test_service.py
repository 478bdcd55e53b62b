"""The updater's door: whom it hears, what comes with an order, and what becomes of anything that is no order."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipc.frames import FrameDecoder
from ipc.messages import Request
from ipc.updatermessages import (
    UPDATER_MAX_FRAME_BYTES,
    UPDATER_VERSION,
    Describe,
    Description,
    Discard,
    Done,
    Failure,
    Progress,
    TakeBundle,
    UpdaterCode,
    encode_updater,
    from_updater_decoder,
)
from tests.support.waiting import READY_S
from updater import service as module
from updater.clock import SystemClock
from updater.download import Report
from updater.failures import CoreGone
from updater.service import Service

pytestmark = pytest.mark.system

DESCRIBE = encode_updater(Describe(v=UPDATER_VERSION, id=7))
BUNDLE = encode_updater(TakeBundle(v=UPDATER_VERSION, id=8, directive=None, key_set=None, now=0))


class Orders:
    """What reached the updater.

    Attributes:
        content: of the file that came with a bundle's order.
        gone: the core had closed its end when progress was reported.
    """

    def __init__(self) -> None:
        self.content = b""
        self.gone = threading.Event()

    def carry_out(self, order: Request, descriptor: int | None, report: Report) -> Request:
        if isinstance(order, TakeBundle):
            assert descriptor is not None
            self.content = os.pread(descriptor, 100, 0)
            report(1, 2)
            return Done(v=UPDATER_VERSION, id=order.id)
        if isinstance(order, Discard):
            try:
                while True:
                    report(1, 2)
            except CoreGone:
                self.gone.set()
                raise
        return Description(v=UPDATER_VERSION, id=order.id, program="x", orders=(), staged=())


def asked(path: Path, data: bytes, *descriptors: int) -> list[Any]:
    """All that the updater says until it closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(READY_S)
        sock.connect(str(path))
        # Another user is answered and cut off without being heard, maybe before this is sent.
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(sock, [data], descriptors) if descriptors else sock.sendall(data)
        decoder, found = FrameDecoder(UPDATER_MAX_FRAME_BYTES), []
        with contextlib.suppress(ConnectionResetError):
            while received := sock.recv(65536):
                found += [from_updater_decoder().decode(frame) for frame in decoder.receive_data(received)]
    return found


@pytest.fixture
def orders() -> Orders:
    return Orders()


@pytest.fixture
def serve(tmp_path: Path, orders: Orders) -> Iterator[Callable[..., Path]]:
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def start(core_uid: int = os.geteuid()) -> Path:
        path = tmp_path / "updater.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listeners.append(listener)
        service = Service(listener, core_uid, orders.carry_out, SystemClock(), 0.3)
        threads.append(threading.Thread(target=service.serve))
        threads[-1].start()
        return path

    yield start
    for thread, listener in zip(threads, listeners, strict=True):
        thread.join(READY_S)
        assert not thread.is_alive(), "it did not leave when idle"
        listener.close()


def code(messages: list[Any]) -> str:
    (message,) = messages
    assert isinstance(message, Failure) and not message.network
    return message.code


def test_an_order_is_answered_and_the_next_one_too(serve: Callable[..., Path]) -> None:
    path = serve()
    for _ in range(2):
        (message,) = asked(path, DESCRIBE)
        assert isinstance(message, Description) and message.id == 7


def test_another_user_is_refused_unheard(serve: Callable[..., Path]) -> None:
    assert code(asked(serve(os.geteuid() + 1), DESCRIBE)) == UpdaterCode.NOT_ALLOWED


def test_a_bundle_comes_as_a_descriptor(serve: Callable[..., Path], orders: Orders, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    path = serve()
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    try:
        progress, done = asked(path, BUNDLE, descriptor)
        assert isinstance(progress, Progress) and (progress.done, progress.total) == (1, 2) and isinstance(done, Done)
        assert orders.content == b"content"
        assert code(asked(path, BUNDLE, descriptor, descriptor)) == UpdaterCode.MALFORMED
        assert code(asked(path, DESCRIBE, descriptor)) == UpdaterCode.MALFORMED
        assert code(asked(path, BUNDLE)) == UpdaterCode.MALFORMED
        assert len(asked(path, DESCRIBE)) == 1
        assert len(os.listdir("/proc/self/fd")) == before, "no descriptor stays open"
    finally:
        os.close(descriptor)


def test_work_ends_when_the_core_leaves(serve: Callable[..., Path], orders: Orders) -> None:
    path = serve()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(encode_updater(Discard(v=UPDATER_VERSION, id=9, keep=())))
        sock.recv(1)
    assert orders.gone.wait(READY_S)
    assert len(asked(path, DESCRIBE)) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"v": 1, "id": 3, "op": "install", "path": "/tmp/evil.deb"},
        {"v": 1, "id": 3, "op": "stage", "url": "https://evil.example/x"},
        {"v": 1, "id": 3, "op": "discard", "keep": ["../../etc"]},
        {"v": 2, "id": 3, "op": "describe"},
        {"v": 1, "id": 3},
    ],
)
def test_what_is_no_order_is_answered_and_the_next_one_heard(serve: Callable[..., Path], body: dict[str, object]) -> None:
    frame = msgspec.msgpack.encode(body)
    path = serve()
    assert code(asked(path, len(frame).to_bytes(4, "big") + frame)) == UpdaterCode.MALFORMED
    assert code(asked(path, (UPDATER_MAX_FRAME_BYTES + 1).to_bytes(4, "big") + b"x" * 100)) == UpdaterCode.MALFORMED
    assert len(asked(path, DESCRIBE)) == 1


def test_an_order_that_never_ends_is_cut_off(serve: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPDATER_ORDER_TIMEOUT_S", 0.05)
    path = serve()
    assert asked(path, DESCRIBE[:6]) == []
    assert len(asked(path, DESCRIBE)) == 1
