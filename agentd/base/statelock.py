"""Lets one process at a time work on a state directory: the daemon, or a command that repairs it."""

import fcntl
import os
from pathlib import Path


class StateInUse(Exception):
    """Another process works on the state directory."""


class StateLock:
    """Holds the directory's lock until it is closed, or the process ends.

    Args:
        directory: the state directory.

    Raises:
        StateInUse: another process holds it.
        OSError: the directory cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / "lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise StateInUse(
                f"another license-agent works on {directory}; stop it first, with the sockets that would start it again: "
                "systemctl stop license-agent-pos.socket license-agent-admin.socket license-agent.service"
            ) from None

    def close(self) -> None:
        """Releases the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
