"""Connects to another process of the agent by its socket, and makes sure who is there before anything is sent."""

import contextlib
import os
import pwd
import socket

from ipc.peer import UntrustedDaemon, check_daemon


class NoDaemon(Exception):
    """Nobody is at the socket, or somebody else. The text says which and why."""


def connect_to(path: str, who: str, user: str, uid: int | None = None) -> socket.socket:
    """A connection that does not block.

    Args:
        path: of the socket.
        who: the process, for errors: "link".
        user: whom it runs as. Root, where systemd made the socket, and our own user, whose processes can do all that we can,
            are trusted besides.
        uid: of that user, where it has another name.

    Raises:
        NoDaemon: there is no such connection.
    """
    uids = {0, os.geteuid()}
    if uid is not None:
        uids.add(uid)
    else:
        with contextlib.suppress(KeyError):
            uids.add(pwd.getpwnam(user).pw_uid)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A Unix socket connects at once or not at all.
        sock.setblocking(False)
        sock.connect(path)
        check_daemon(sock, path, frozenset(uids))
    except OSError as error:
        sock.close()
        raise NoDaemon(f"no {who} answers at {path}: {error.strerror or error}") from None
    except UntrustedDaemon as error:
        sock.close()
        raise NoDaemon(f"the {who} cannot be trusted: {error}") from None
    return sock
