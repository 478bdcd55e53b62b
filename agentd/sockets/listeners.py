"""Listening sockets: those that systemd passed (sd_listen_fds(3)), else our own with safe modes."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_FIRST_FD = 3
POS, ADMIN = "pos", "admin"
_MODES = {POS: 0o666, ADMIN: 0o600}
BACKLOG = 4096


class ListenError(Exception):
    """A socket cannot be had; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """The two sockets, and whether they are somebody else's to remove."""

    pos: socket.socket
    admin: socket.socket
    inherited: bool

    def close(self) -> None:
        """Closes both; a path of our own is removed, an inherited one stays for the next run."""
        for sock in (self.pos, self.admin):
            path = sock.getsockname()
            sock.close()
            if not self.inherited:
                Path(path).unlink(missing_ok=True)


def inherited_sockets() -> Listeners | None:
    """The sockets that the service manager passed, named `pos` and `admin`; None if it passed none.

    Raises:
        ListenError: it passed something else.
    """
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return None
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    found: dict[str, socket.socket] = {}
    for offset, name in zip(range(count), names, strict=False):
        os.set_inheritable(_FIRST_FD + offset, False)
        found[name] = socket.socket(fileno=_FIRST_FD + offset)
    if found.keys() != {POS, ADMIN}:
        raise ListenError(
            f"the service manager passed the sockets {', '.join(found) or 'none'}; "
            "name them 'pos' and 'admin' (FileDescriptorName=)"
        )
    for name, sock in found.items():
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ListenError(f"the socket {name} that the service manager passed is not a Unix stream socket")
        sock.setblocking(False)
    return Listeners(found[POS], found[ADMIN], inherited=True)


def own_sockets(run_dir: Path) -> Listeners:
    """Makes both sockets in `run_dir`.

    Raises:
        ListenError: the directory is not ours alone to write to, or another agent is serving there.
    """
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        info = run_dir.stat()
    except OSError as error:
        raise ListenError(f"{run_dir} cannot be used for the sockets: {error.strerror}") from None
    if info.st_mode & 0o022 or info.st_uid not in (0, os.geteuid()):
        raise ListenError(
            f"{run_dir} must belong to root or uid {os.geteuid()} and not be writable by others: chmod 0755 {run_dir}"
        )
    pos = _listen(run_dir / "pos.sock", POS)
    try:
        return Listeners(pos, _listen(run_dir / "admin.sock", ADMIN), inherited=False)
    except ListenError:
        pos.close()
        (run_dir / "pos.sock").unlink(missing_ok=True)
        raise


def _listen(path: Path, name: str) -> socket.socket:
    if path.exists() and not path.is_socket():
        raise ListenError(f"{path} is in the way and not a socket; remove it")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            probe.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        path.unlink(missing_ok=True)
    except OSError as error:
        sock.close()
        raise ListenError(f"{path} cannot be used for a socket: {error.strerror or error}") from None
    else:
        sock.close()
        raise ListenError(f"another agent is serving {path}; stop it first")
    old = os.umask(0o777)
    try:
        sock.bind(os.fspath(path))
    except OSError as error:
        sock.close()
        raise ListenError(f"{path} cannot be made: {error.strerror or error}") from None
    finally:
        os.umask(old)
    path.chmod(_MODES[name])
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock
