"""The kernel says who is at the other end; a client talks to nobody but the agent."""

import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from ipc.peer import Peer, UntrustedDaemon, check_daemon, peer_of
from ipc.posclient.trust import trusted_uids

pytestmark = pytest.mark.system

ME = os.geteuid()


@pytest.fixture
def pair(socket_dir: Path) -> Any:
    path = socket_dir / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen()
        client.connect(str(path))
        server, _ = listener.accept()
        with server:
            yield client, server, str(path)


def test_the_peer_is_this_process(pair: Any) -> None:
    for sock in pair[:2]:
        assert peer_of(sock) == Peer(ME, os.getegid(), os.getpid())


class Fake:
    """A socket of a kernel without SO_PEERPIDFD."""

    def __init__(self, credentials: bytes) -> None:
        self.credentials = credentials

    def getsockopt(self, _level: int, option: int, *_size: int) -> bytes:
        if option == socket.SO_PEERCRED:
            return self.credentials
        raise OSError(92, "Protocol not available")


@pytest.mark.parametrize("uid", [0, 1000, 2**31 - 1, 2**31, 3_000_000_000, 2**32 - 2])
def test_user_ids_have_32_bits_without_a_sign(uid: int) -> None:
    assert peer_of(Fake(struct.pack("iII", 42, uid, uid))) == Peer(uid, uid, 42)  # type: ignore[arg-type]


def test_a_process_outside_our_namespace_has_no_number() -> None:
    assert peer_of(Fake(struct.pack("iII", 0, 5, 6))).pid == 0  # type: ignore[arg-type]


def test_a_socket_without_a_peer_has_no_identity() -> None:
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError):
        peer_of(sock)


def test_the_agent_is_trusted(pair: Any) -> None:
    check_daemon(pair[0], pair[2], frozenset({ME}))


@pytest.mark.parametrize("mode", [0o755, 0o711, 0o700, 0o1755])
def test_directories_that_only_the_owner_writes_to_are_trusted(pair: Any, socket_dir: Path, mode: int) -> None:
    socket_dir.chmod(mode)
    check_daemon(pair[0], pair[2], frozenset({ME}))


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777, 0o720, 0o702])
def test_a_directory_that_others_may_write_to_is_refused(pair: Any, socket_dir: Path, mode: int) -> None:
    socket_dir.chmod(mode)
    with pytest.raises(UntrustedDaemon, match=f"{mode:04o}"):
        check_daemon(pair[0], pair[2], frozenset({ME}))


def test_a_directory_of_somebody_else_is_refused(pair: Any) -> None:
    with pytest.raises(UntrustedDaemon, match=f"belongs to uid {ME}"):
        check_daemon(pair[0], pair[2], frozenset({ME + 1}))


def test_a_socket_served_by_somebody_else_is_refused(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipc.peer.peer_of", lambda _sock: Peer(ME + 1, 5, 6))
    with pytest.raises(UntrustedDaemon, match=f"served by uid {ME + 1}"):
        check_daemon(pair[0], pair[2], frozenset({ME}))


def test_a_directory_that_has_gone_is_an_os_error(pair: Any, socket_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_daemon(pair[0], str(socket_dir / "gone" / "s"), frozenset({ME}))


def test_root_the_caller_and_the_named_agent_are_trusted() -> None:
    assert trusted_uids(12345) == {0, ME, 12345}
    assert {0, ME} <= trusted_uids()
