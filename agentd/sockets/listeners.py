"""Gets the daemon's two listening sockets: those that systemd passed, else new ones with safe modes."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from common.files import OTHERS_WRITE, mode_problem, owner_problem
from common.listening import ListenError, listen, passed_sockets
from ipc.bounds import BACKLOG

POS, ADMIN = "pos", "admin"
_MODES = {POS: 0o666, ADMIN: 0o600}


@dataclass(frozen=True, slots=True)
class Listeners:
    """The two sockets.

    Attributes:
        pos: of POS applications.
        admin: of administrators.
        inherited: systemd made them, and removes them.
    """

    pos: socket.socket
    admin: socket.socket
    inherited: bool

    def close(self) -> None:
        """Closes both, and removes the names of our own."""
        for sock in (self.pos, self.admin):
            path = sock.getsockname()
            sock.close()
            if not self.inherited:
                Path(path).unlink(missing_ok=True)


def inherited_sockets() -> Listeners | None:
    """Takes the sockets that systemd passed, named `pos` and `admin`; None if it passed none.

    Raises:
        ListenError: it passed something else.
    """
    passed = passed_sockets()
    if not passed:
        return None
    found = dict(passed)
    if found.keys() != {POS, ADMIN} or len(passed) != len(found):
        names = ", ".join(name for name, _ in passed)
        raise ListenError(f"systemd passed the sockets {names}; name them 'pos' and 'admin' (FileDescriptorName=)")
    return Listeners(found[POS], found[ADMIN], inherited=True)


def own_sockets(run_dir: Path) -> Listeners:
    """Makes both sockets in `run_dir`.

    Raises:
        ListenError: others may write to the directory, or another agent is serving there.
    """
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        info = run_dir.stat()
    except OSError as error:
        raise ListenError(f"{run_dir} cannot be used for the sockets: {error.strerror}") from None
    if problem := mode_problem(run_dir, info, OTHERS_WRITE) or owner_problem(run_dir, info, {0, os.geteuid()}):
        raise ListenError(problem)
    pos = listen(run_dir / "pos.sock", _MODES[POS], BACKLOG, "agent")
    try:
        return Listeners(pos, listen(run_dir / "admin.sock", _MODES[ADMIN], BACKLOG, "agent"), inherited=False)
    except ListenError:
        pos.close()
        (run_dir / "pos.sock").unlink(missing_ok=True)
        raise
