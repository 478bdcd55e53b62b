"""Makes raw system calls. libc is the one that the interpreter is linked with: looking for another would run programs."""

import ctypes
import os

from .errors import ConfineError

_PR_SET_NO_NEW_PRIVS = 38
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def system_call(number: int, *arguments: int) -> int:
    """What syscall(2) returns.

    Args:
        number: of the system call, on this machine.
        arguments: numbers and addresses, six at most.

    Raises:
        OSError: the kernel refuses, with its errno.
    """
    result: int = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def set_no_new_privileges() -> None:
    """Renounces for good what a program could gain by being started (prctl(2), PR_SET_NO_NEW_PRIVS); both restrictions need it.

    Raises:
        ConfineError: the kernel refuses.
    """
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0))) != 0:
        raise ConfineError(f"PR_SET_NO_NEW_PRIVS: {os.strerror(ctypes.get_errno())}")
