"""Time limits and faults of a session, in this process, over a socket pair."""

import asyncio
import logging
import os
import socket
import time
from pathlib import Path

import pytest

from ipc.frames import FrameDecoder
from ipc.linkmessages import FailCode, Failed, Hello, Ready, encode_link, from_link_decoder
from link import service, session
from link.config import LinkConfig
from link.service import Service
from link.session import Session
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

CONFIG = LinkConfig(core_uid=os.geteuid())
HELLO = encode_link(Hello(v=1, id=1, time=0, certificates=None, provisioning=None))


async def converse(data: bytes) -> bytes:
    """What a session says to these bytes, until it closes."""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.setblocking(False)
        ours.setblocking(False)
        ours.send(data)
        await asyncio.wait_for(Session(theirs, CONFIG, time.monotonic).run(), READY_S)
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


def test_a_fault_of_ours_ends_one_connection_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Session):
        async def run(self) -> None:
            self._sock.close()
            raise ZeroDivisionError

    async def work() -> bytes:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(socket_dir / "s"))
            listener.listen()
            listener.setblocking(False)
            serving = asyncio.create_task(Service(listener, CONFIG, time.monotonic, 0.2).serve())
            said = b""
            for kind in (Broken, Session):
                monkeypatch.setattr(service, "Session", kind)
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.setblocking(False)
                    await loop.sock_connect(sock, str(socket_dir / "s"))
                    await loop.sock_sendall(sock, HELLO)
                    try:
                        said = await loop.sock_recv(sock, 65536)
                    except ConnectionResetError:
                        said = b""
            await asyncio.wait_for(serving, READY_S)
            return said

    with caplog.at_level(logging.INFO, "link"):
        assert asyncio.run(work()) == encode_link(Ready(v=1, id=1))
    assert "an error in the link ended a connection" in caplog.text and "exiting: no connection" in caplog.text
