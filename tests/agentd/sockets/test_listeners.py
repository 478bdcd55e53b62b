"""Sockets of our own have safe modes and take the place of dead ones only."""

import os
import socket
from pathlib import Path

import pytest

from agentd.sockets.listeners import own_sockets
from common.listening import ListenError

pytestmark = pytest.mark.system


def test_the_pos_socket_is_for_all_and_the_admin_socket_for_us(socket_dir: Path) -> None:
    run = socket_dir / "run"
    listeners = own_sockets(run)
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.iterdir()}
    assert modes == {"pos.sock": 0o666, "admin.sock": 0o600}
    assert not listeners.inherited
    for sock in (listeners.pos, listeners.admin):
        assert not sock.getblocking()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(sock.getsockname())
    listeners.close()
    assert list(run.iterdir()) == []


def test_a_dead_socket_is_replaced(socket_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_dir / "pos.sock"))
    own_sockets(socket_dir).close()


@pytest.mark.parametrize("name", ["pos.sock", "admin.sock"])
def test_a_live_socket_is_left_alone_and_nothing_stays_behind(socket_dir: Path, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(socket_dir / name))
        live.listen()
        with pytest.raises(ListenError, match="another agent is serving"):
            own_sockets(socket_dir)
    assert os.listdir(socket_dir) == [name]


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(socket_dir: Path, mode: int) -> None:
    socket_dir.chmod(mode)
    with pytest.raises(ListenError, match=f"others may change it; run: chmod go-w {socket_dir}"):
        own_sockets(socket_dir)
    assert os.listdir(socket_dir) == []


def test_a_directory_in_the_way_is_told(socket_dir: Path) -> None:
    (socket_dir / "pos.sock").mkdir()
    with pytest.raises(ListenError, match=r"pos\.sock"):
        own_sockets(socket_dir)


def test_a_path_too_long_for_a_socket_is_told(socket_dir: Path) -> None:
    with pytest.raises(ListenError, match="too long"):
        own_sockets(socket_dir / ("x" * 120))
