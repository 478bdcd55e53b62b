"""Finds out who is at the other end of a Unix socket, from the kernel.

UID and GID are those at the time of connect (SO_PEERCRED, unix(7)); only they authorize. The PID is for the audit alone,
since PIDs are reused: where the kernel has SO_PEERPIDFD (6.5 and later) it is read through the pidfd, which shows -1 once
the process has gone.
"""

import errno
import os
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from .errors import LicenseAgentError

_SO_PEERPIDFD = 77  # include/uapi/asm-generic/socket.h, Linux 6.5
_UCRED = struct.Struct("iII")
_NOBODY = 2**32 - 1  # what the kernel gives for a socket without a peer

OVERFLOW_ID = 65534
"""What the kernel shows for a user outside our user namespace; it names nobody, so it is never authorized."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The identity that the kernel vouches for.

    Attributes:
        uid: effective user id at connect.
        gid: effective group id at connect; supplementary groups do not count.
        pid: process id for the audit; 0 where it is not known, or the process has gone.
    """

    uid: int
    gid: int
    pid: int


def peer_of(sock: socket.socket, *, sure_of_pid: bool = True) -> Peer:
    """Reads the peer of a connected Unix socket.

    Args:
        sock: the connection.
        sure_of_pid: whether it is worth some 30 microseconds to know that the PID has not been reused.

    Raises:
        OSError: `sock` is not a connected Unix socket.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid == _NOBODY:
        raise OSError(errno.ENOTCONN, "the socket has no peer")
    return Peer(uid=uid, gid=gid, pid=_pid_through_pidfd(sock, pid) if sure_of_pid else max(pid, 0))


def _pid_through_pidfd(sock: socket.socket, fallback: int) -> int:
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return max(fallback, 0)
    try:
        for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text("ascii").splitlines():
            if line.startswith("Pid:"):
                return max(int(line[4:]), 0)
        return 0
    except OSError:
        return max(fallback, 0)
    finally:
        os.close(pidfd)


class UntrustedDaemon(LicenseAgentError):
    """The peer on the socket, or the owner of the socket's directory, is not the agent; the text says which and why."""


def check_daemon(sock: socket.socket, path: str, trusted_uids: frozenset[int]) -> None:
    """Makes sure that a connected socket leads to the agent.

    A socket that systemd passed to the daemon shows UID 0, who called listen(2); one that the daemon made shows the
    daemon's own UID. The directory must belong to a trusted user too, and nobody else may write to it: otherwise
    another user could have put a socket of theirs at this path.

    Args:
        sock: connected to `path`.
        path: the path of the socket.
        trusted_uids: who may serve the socket and own its directory.

    Raises:
        UntrustedDaemon: the owner or the peer is somebody else.
        OSError: the directory cannot be examined.
    """
    directory = os.path.dirname(path) or "."
    info = os.stat(directory)
    if not _is_trusted(info.st_uid, trusted_uids):
        who = f"the directory {directory} belongs to uid {info.st_uid}, not to root or the agent"
        raise UntrustedDaemon(f"{who}{_why_unmapped(info.st_uid)}")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedDaemon(f"others may write to the directory {directory} (mode {stat.S_IMODE(info.st_mode):04o})")
    uid = peer_of(sock).uid
    if not _is_trusted(uid, trusted_uids):
        who = f"the socket {path} is served by uid {uid}, not by root or the agent"
        raise UntrustedDaemon(f"{who}{_why_unmapped(uid)}")


def _is_trusted(uid: int, trusted_uids: frozenset[int]) -> bool:
    # Where every user is mapped, 65534 is the ordinary user `nobody`.
    return uid in trusted_uids and (uid != OVERFLOW_ID or _hides_users())


def _why_unmapped(uid: int) -> str:
    if uid != OVERFLOW_ID or not _hides_users():
        return ""
    return (
        ". The user namespace of this process is the cause: in a container the kernel shows 65534 for every user that the "
        "container does not map, root and the agent among them. Pass agent_uid=65534 (license-agent-client: --agent-uid 65534) "
        "to accept them; 'POS applications in containers' in the agent's guides says more"
    )


def _hides_users() -> bool:
    try:
        return hides_users(Path("/proc/self/uid_map").read_text("ascii"))
    except OSError:
        return False


def hides_users(uid_map: str) -> bool:
    """Whether a user namespace leaves users unmapped.

    Args:
        uid_map: content of /proc/PID/uid_map: lines of first user inside, first user outside, and count.
    """
    return sum(int(line.split()[2]) for line in uid_map.splitlines()) < _NOBODY
