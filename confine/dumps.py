"""Forbids core dumps of the process, and ptrace by other processes of its user (prctl(2) PR_SET_DUMPABLE)."""

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_dumps() -> None:
    """Leaves no core dump, whatever the limits are, and lets only root attach to this process.

    Raises:
        OSError: the kernel refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"PR_SET_DUMPABLE: {os.strerror(error)}")
