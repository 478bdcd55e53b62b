"""Time limits and faults of a session, in this process, over a socket pair."""

import asyncio
import contextlib
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest

from common.logqueue import LogQueue, PrefixFormatter, StreamSink, encoder, install
from ipc.frames import FrameDecoder
from ipc.linkmessages import FailCode, Failed, Hello, Ready, encode_link, from_link_decoder
from link import service, session
from link.clients import CORE
from link.config import LinkConfig
from link.service import Service
from link.session import Session
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

CONFIG = LinkConfig(core_uid=os.geteuid())
HELLO = encode_link(Hello(v=1, id=1, time=0, certificates=None, provisioning=None, latest=0))


async def converse(data: bytes) -> bytes:
    """What a session says to these bytes, until it closes."""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.setblocking(False)
        ours.setblocking(False)
        ours.send(data)
        await asyncio.wait_for(Session(theirs, CONFIG, CORE, time.monotonic).run(), READY_S)
        said = b""
        while piece := await asyncio.get_running_loop().sock_recv(ours, 65536):
            said += piece
        return said


@pytest.mark.parametrize("data", [b"", HELLO[:-1], b"\x00"], ids=["nothing", "half a hello", "half a header"])
def test_a_connection_without_a_hello_is_closed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(session, "HELLO_TIMEOUT_S", 0.05)
    assert asyncio.run(converse(data)) == b""


def test_a_connection_without_a_fetch_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SESSION_IDLE_S", 0.05)
    assert asyncio.run(converse(HELLO)) == encode_link(Ready(v=1, id=1))


def test_what_comes_after_an_oversized_frame_is_not_read() -> None:
    said = asyncio.run(converse(HELLO + b"\x7f\xff\xff\xff" + HELLO))
    ready, failed = (from_link_decoder().decode(body) for body in FrameDecoder().receive_data(said))
    assert isinstance(ready, Ready) and isinstance(failed, Failed) and failed.code is FailCode.MALFORMED


def test_a_fault_of_ours_ends_one_connection_and_is_logged(monkeypatch: pytest.MonkeyPatch, socket_dir: Path) -> None:
    class Broken(Session):
        async def run(self) -> None:
            if (socket_dir / "broken").exists():
                raise ZeroDivisionError
            await super().run()

    def serve(listener: socket.socket) -> None:
        with (socket_dir / "log").open("ab") as file:
            lines = LogQueue(encoder(PrefixFormatter()), StreamSink(file.fileno()))
            install(lines)
            monkeypatch.setattr(service, "Session", Broken)
            Service(listener, CONFIG, time.monotonic, lines, 0.2).serve()

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(READY_S)
            sock.connect(str(socket_dir / "s"))
            sock.sendall(HELLO)
            with contextlib.suppress(ConnectionResetError):
                return sock.recv(65536)
            return b""

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_dir / "s"))
        listener.listen()
        listener.setblocking(False)
        (socket_dir / "broken").touch()
        serving = multiprocessing.get_context("fork").Process(target=serve, args=(listener,))
        serving.start()
        try:
            assert ask() == b""
            (socket_dir / "broken").unlink()
            assert ask() == encode_link(Ready(v=1, id=1))
        finally:
            serving.join(READY_S)
            serving.kill()
    log = (socket_dir / "log").read_text()
    assert "an error in the link ended a connection" in log and "exiting: no connection" in log
