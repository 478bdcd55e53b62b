"""Sockets are taken from systemd as sd_listen_fds(3) says, and a socket of our own takes the place of a dead one only."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.listening import ListenError, listen, passed_sockets
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

# Passes its sockets as systemd does, then looks at what it got.
SCRIPT = """
import os, socket, sys
from common.listening import ListenError, passed_sockets
kinds = {"unix": (socket.AF_UNIX, socket.SOCK_STREAM), "tcp": (socket.AF_INET, socket.SOCK_STREAM),
         "datagram": (socket.AF_UNIX, socket.SOCK_DGRAM)}
made = [socket.socket(*kinds[kind]) for kind in sys.argv[2:]]
high = [os.dup2(sock.fileno(), 100 + number) for number, sock in enumerate(made)]
for sock in made:
    sock.close()
for number, descriptor in enumerate(high):
    os.dup2(descriptor, 3 + number, inheritable=True)
os.environ.update(dict(pair.split("=") for pair in sys.argv[1].split(",")), LISTEN_PID=str(os.getpid()))
try:
    passed = passed_sockets()
except ListenError as error:
    sys.exit(str(error))
for name, sock in passed:
    print(name, sock.fileno(), os.get_inheritable(sock.fileno()), sock.getblocking())
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
"""


def passing(environment: str, *kinds: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, environment, *kinds]
    return subprocess.run(command, capture_output=True, text=True, timeout=READY_S, cwd=Path(__file__).parents[2], check=False)


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ("LISTEN_FDS=2,LISTEN_FDNAMES=pos:admin", ("pos", "admin")),
        ("LISTEN_FDS=2", ("unknown", "unknown")),
        ("LISTEN_FDS=2,LISTEN_FDNAMES=pos", ("pos", "unknown")),
    ],
)
def test_passed_sockets_come_with_their_names_and_go_no_further(environment: str, names: tuple[str, str]) -> None:
    assert passing(environment, "unix", "unix").stdout.splitlines() == [
        f"{names[0]} 3 False False",
        f"{names[1]} 4 False False",
        "[]",
    ]


@pytest.mark.parametrize(
    ("environment", "kinds", "text"),
    [
        ("LISTEN_FDS=1,LISTEN_FDNAMES=pos", ("tcp",), "the socket 'pos' that systemd passed is not a Unix stream socket"),
        ("LISTEN_FDS=1", ("datagram",), "the socket 'unknown' that systemd passed is not a Unix stream socket"),
        ("LISTEN_FDS=2,LISTEN_FDNAMES=a:b", ("unix",), "the socket 'b' that systemd passed cannot be used"),
        ("LISTEN_FDS=many", (), "LISTEN_FDS is 'many', not a number of sockets"),
        ("LISTEN_FDS=-1", (), "LISTEN_FDS is '-1', not a number of sockets"),
    ],
)
def test_anything_else_that_was_passed_is_refused(environment: str, kinds: tuple[str, ...], text: str) -> None:
    assert text in passing(environment, *kinds).stderr


def test_sockets_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert passed_sockets() == []


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_a_new_socket_has_its_mode_and_does_not_block(socket_dir: Path, mode: int) -> None:
    path = socket_dir / "s"
    with listen(path, mode, 5, "agent") as sock, socket.socket(socket.AF_UNIX) as client:
        assert (path.stat().st_mode & 0o777, sock.getblocking()) == (mode, False)
        client.connect(str(path))
        sock.accept()[0].close()


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(socket_dir: Path) -> None:
    path = socket_dir / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listen(path, 0o600, 5, "agent"), pytest.raises(ListenError, match="another agent is serving"):
        listen(path, 0o600, 5, "agent")


def test_what_is_not_a_socket_stays(socket_dir: Path) -> None:
    path = socket_dir / "s"
    path.write_text("mine")
    with pytest.raises(ListenError, match="exists and is not a socket; remove it"):
        listen(path, 0o600, 5, "agent")
    assert path.read_text() == "mine"
