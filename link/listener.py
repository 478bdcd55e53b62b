"""Gets the socket that the link serves: the one that systemd passed, else a new one."""

import socket
from pathlib import Path

from common.files import OTHERS_WRITE, mode_problem
from common.listening import ListenError, listen, passed_sockets

DEFAULT_SOCKET = Path("/run/license-agent/link.sock")
BACKLOG = 64


def inherited_socket() -> socket.socket | None:
    """Takes the one socket that systemd passed; None if it passed none.

    Raises:
        ListenError: it passed something else.
    """
    passed = passed_sockets()
    if len(passed) > 1:
        raise ListenError(f"systemd passed {len(passed)} sockets; the link takes one")
    return passed[0][1] if passed else None


def own_socket(path: Path) -> socket.socket:
    """Makes the socket. Its mode lets everyone connect; the peer's UID, from the kernel, decides who is served.

    Raises:
        ListenError: others may write to the directory, or another link is serving there.
    """
    directory = path.parent
    try:
        info = directory.stat()
    except OSError as error:
        raise ListenError(f"{directory} cannot be used for the socket: {error.strerror}") from None
    if problem := mode_problem(directory, info, OTHERS_WRITE):
        raise ListenError(problem)
    return listen(path, 0o666, BACKLOG, "link")
