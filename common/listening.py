"""Gets listening Unix sockets: the ones that systemd passed (sd_listen_fds(3)), or new ones."""

import os
import socket
from pathlib import Path

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_UNNAMED = "unknown"  # what sd_listen_fds_with_names(3) calls a socket without a name


class ListenError(Exception):
    """A socket cannot be had; the text says which one, why and what to do."""


def passed_sockets() -> list[tuple[str, socket.socket]]:
    """Takes the sockets that systemd passed to this process, each with its name (FileDescriptorName=); none if it passed none.

    They do not block. Programs that this process starts do not inherit them, and the environment names them no more.

    Raises:
        ListenError: something else than Unix stream sockets was passed.
    """
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return []
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    count = os.environ.pop("LISTEN_FDS", "0")
    if not (count.isascii() and count.isdigit() and len(count) < 6):
        raise ListenError(f"LISTEN_FDS is {count!r}, not a number of sockets")
    found = []
    for offset in range(int(count)):
        name = names[offset] if offset < len(names) and names[offset] else _UNNAMED
        try:
            os.set_inheritable(_FIRST_FD + offset, False)
            sock = socket.socket(fileno=_FIRST_FD + offset)
        except OSError as error:
            raise ListenError(f"the socket '{name}' that systemd passed cannot be used: {error.strerror}") from None
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ListenError(f"the socket '{name}' that systemd passed is not a Unix stream socket")
        sock.setblocking(False)
        found.append((name, sock))
    return found


def listen(path: Path, mode: int, backlog: int, program: str) -> socket.socket:
    """Makes a listening socket that does not block. A socket that nobody serves is replaced.

    The caller has made sure that nobody else may write to the directory.

    Args:
        path: its name.
        mode: its permission bits; nobody can connect before it has them.
        backlog: connections that may wait.
        program: what serves there, for the error: "agent".

    Raises:
        ListenError: something else has that name, another process serves there, or the name cannot be used.
    """
    if path.exists() and not path.is_socket():
        raise ListenError(f"{path} exists and is not a socket; remove it")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_served(path):
            raise ListenError(f"another {program} is serving {path}; stop it first")
        path.unlink(missing_ok=True)
        before = os.umask(0o777)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        path.chmod(mode)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise ListenError(f"{path} cannot be used for a socket: {error.strerror or error}") from None
    except ListenError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
