"""Forbids the process to start any program, with a seccomp filter for all its threads and everything it forks.

execve and execveat answer EPERM and everything else goes on. A call by the tables of another architecture ends the process:
no code of ours makes one, what makes it looks for a way around this filter, and the kernel logs a kill while it keeps quiet
about an errno. x32 shares the architecture's number with x86_64 and differs by a bit of the call's number; it gets EPERM, since
-1, which the kernel itself puts there for a call that a tracer skips, has the same bit.
"""

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from .errors import ConfineError
from .kernel import set_no_new_privileges, system_call

# linux/bpf_common.h
_LOAD_WORD = 0x00 | 0x00 | 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x05 | 0x10 | 0x00  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_NOT_BELOW = 0x05 | 0x30 | 0x00  # BPF_JMP | BPF_JGE | BPF_K
_RETURN = 0x06 | 0x00  # BPF_RET | BPF_K

# struct seccomp_data, linux/seccomp.h
_NUMBER, _ARCHITECTURE = 0, 4

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
REFUSE = 0x00050000 | errno.EPERM  # SECCOMP_RET_ERRNO

X32_BIT = 0x40000000
_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1


class Machine(NamedTuple):
    """Numbers of a machine.

    Attributes:
        architecture: AUDIT_ARCH_* of linux/audit.h.
        execve: number of that system call.
        execveat: likewise.
        seccomp: likewise.
        x32: whether the kernel may take calls of the x32 ABI under the same architecture.
    """

    architecture: int
    execve: int
    execveat: int
    seccomp: int
    x32: bool


MACHINES = {
    "x86_64": Machine(0xC000003E, 59, 322, 317, True),
    "aarch64": Machine(0xC00000B7, 221, 281, 277, False),
}


def _machine(name: str) -> Machine:
    try:
        return MACHINES[name]
    except KeyError:
        raise ConfineError(f"no filter against exec is known for {name}; known are {', '.join(MACHINES)}") from None


def exec_filter(machine: str) -> bytes:
    """The filter's program: struct sock_filter[], eight bytes an instruction.

    Args:
        machine: as uname(2) calls it.

    Raises:
        ConfineError: it is not in `MACHINES`.
    """
    known = _machine(machine)
    refused = [(_JUMP_NOT_BELOW, X32_BIT)] if known.x32 else []
    refused += [(_JUMP_EQUAL, known.execve), (_JUMP_EQUAL, known.execveat)]
    program = [
        (_LOAD_WORD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, known.architecture),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD_WORD, 0, 0, _NUMBER),
        # A jump counts what it leaves out: the tests behind it, and ALLOW.
        *((code, len(refused) - place, 0, value) for place, (code, value) in enumerate(refused)),
        (_RETURN, 0, 0, ALLOW),
        (_RETURN, 0, 0, REFUSE),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    """struct sock_fprog, linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_exec() -> None:
    """Forbids exec to all threads of this process, for good; a second call changes nothing.

    Raises:
        ConfineError: the machine is not known, or the kernel has no seccomp filters.
    """
    name = os.uname().machine
    numbers, code = _machine(name), exec_filter(name)
    if struct.calcsize("P") != 8:
        raise ConfineError(f"this is a 32-bit process on {name}; the filter against exec is for 64-bit ones")
    set_no_new_privileges()
    program = _Program(len(code) // 8, code)
    try:
        stuck = system_call(numbers.seccomp, _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.addressof(program))
    except OSError as error:
        raise ConfineError(f"the kernel refuses the seccomp filter against exec: {error.strerror}") from None
    if stuck:
        raise ConfineError(f"thread {stuck} has a seccomp filter of its own, so the filter against exec cannot apply to it")
