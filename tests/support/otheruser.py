"""Runs our commands as another user, from a checkout that this user may be unable to reach."""

import contextlib
import functools
import tempfile
from pathlib import Path

from stand.reachable import DEVICE, runnable_by

_cleanup = contextlib.ExitStack()


@functools.cache
def commands_for(uid: int) -> Path:
    """Where our commands are for a user: beside the running interpreter, or in a copy for the length of the test run."""
    directory = Path(_cleanup.enter_context(tempfile.TemporaryDirectory(prefix="la-commands-")))
    directory.chmod(0o755)
    return runnable_by(uid, directory / "programs", (*DEVICE, "server"))


def remove_copies() -> None:
    """Removes the copies, at the end of the test run."""
    _cleanup.close()
