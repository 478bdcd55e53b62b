"""A service manager that does not read its socket stops nothing, and misses no change of state."""

import asyncio
import socket
from pathlib import Path

import pytest

from common.sd_notify import MAX_WAITING, Notices, Notifier
from tests.support.waiting import READY_S

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
    assert "did not take a notice" in caplog.text
    notices.close()
    notices.send("READY=1")


def test_a_socket_that_is_not_there_is_logged_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    notifier = Notifier()
    assert not notifier
    assert f"{tmp_path}/none cannot be used: No such file" in caplog.text
    assert notifier.send("READY=1")


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel gives it an abstract name, unix(7)
        manager.settimeout(READY_S)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + manager.getsockname()[1:].decode())
        notifier = Notifier()
        assert notifier and notifier.send("STOPPING=1")
        assert manager.recv(64) == b"STOPPING=1"
        notifier.close()


def test_the_last_notice_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        Notices().last("STOPPING=1")
        assert manager.recv(64) == b"STOPPING=1"
        filler, late = Notifier(), Notices()
        while filler.send("WATCHDOG=1"):
            pass
        late.last("STOPPING=1")  # there is no event loop that could send it later
        filler.close()
