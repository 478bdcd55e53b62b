"""The socket that the link serves: the one that systemd passed (sd_listen_fds(3)), else its own."""

import os
import socket
import stat
from pathlib import Path

DEFAULT_SOCKET = Path("/run/license-agent/link.sock")
BACKLOG = 64
_FIRST_FD = 3


class ListenError(Exception):
    """The socket cannot be had; the text says why."""


def inherited_socket() -> socket.socket | None:
    """The one socket that the service manager passed; None if it passed none.

    Raises:
        ListenError: it passed something else.
    """
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return None
    os.environ.pop("LISTEN_FDNAMES", None)
    count = os.environ.pop("LISTEN_FDS", "0")
    if count != "1":
        raise ListenError(f"the service manager passed {count} sockets; the link takes one")
    os.set_inheritable(_FIRST_FD, False)
    sock = socket.socket(fileno=_FIRST_FD)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise ListenError("the socket that the service manager passed is not a Unix stream socket")
    sock.setblocking(False)
    return sock


def own_socket(path: Path) -> socket.socket:
    """Makes the socket. Its mode lets everyone connect; who is served is decided by the kernel's word on the peer.

    Raises:
        ListenError: the directory is not safe, or another link is serving there.
    """
    directory = path.parent
    try:
        info = directory.stat()
    except OSError as error:
        raise ListenError(f"{directory} cannot be used for the socket: {error.strerror}") from None
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ListenError(
            f"others may write to {directory} (mode {stat.S_IMODE(info.st_mode):04o}); run: chmod go-w {directory}"
        )
    if path.exists() and not path.is_socket():
        raise ListenError(f"{path} is in the way and not a socket; remove it")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear_away(path)
        sock.bind(os.fspath(path))
        path.chmod(0o666)
    except OSError as error:
        sock.close()
        raise ListenError(f"{path} cannot be used for a socket: {error.strerror or error}") from None
    except ListenError:
        sock.close()
        raise
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def _clear_away(path: Path) -> None:
    """Removes a socket that nobody serves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)
        else:
            raise ListenError(f"another link is serving {path}; stop it first")
