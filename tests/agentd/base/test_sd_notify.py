"""A service manager that does not read its socket stops nothing, and misses no change of state."""

import asyncio
import socket
from pathlib import Path

import pytest

from agentd.base.sd_notify import MAX_WAITING, Notices

pytestmark = pytest.mark.system


def test_a_socket_that_nobody_reads_does_not_stop_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))

        async def check() -> list[bytes]:
            notices = Notices()
            for _ in range(1000):
                notices.alive()
            notices.send("READY=1", "STATUS=x")
            notices.send("STOPPING=1")
            heard: list[bytes] = []
            while b"STOPPING=1" not in heard:
                try:
                    heard.append(manager.recv(4096))
                except BlockingIOError:
                    await asyncio.sleep(0.01)
            notices.close()
            return heard

        heard = asyncio.run(check())
    assert heard[-2:] == [b"READY=1\nSTATUS=x", b"STOPPING=1"]
    assert set(heard[:-2]) == {b"WATCHDOG=1"}
    assert len(heard) < 1000


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notices = Notices()
    for _ in range(MAX_WAITING * 2):
        notices.send("READY=1")
        notices.alive()
    notices.close()


def test_a_manager_that_has_gone_is_told_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        notices = Notices()
    notices.send("READY=1")
    assert "takes no notice" in caplog.text
    notices.close()
    notices.send("READY=1")
