"""Limits the files that the process can reach, with Landlock: the kernel refuses what no rule allows, even to root, for good.

The bits and structures are those of linux/landlock.h; Documentation/userspace-api/landlock.rst tells what came with which ABI.
Not mediated by Landlock, and so not here: stat, chdir, connecting to a Unix socket by its path, what is open already.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .errors import ConfineError
from .kernel import set_no_new_privileges, system_call

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What a rule for a single file may give; EINVAL for more."""
_TCP_RIGHTS = 0b11  # BIND_TCP, CONNECT_TCP
_SCOPES = 0b11  # ABSTRACT_UNIX_SOCKET, SIGNAL

NEWEST_ABI = 6
"""The newest one that this module knows; of a kernel that offers more, this one is used."""


class Access(Enum):
    """What a rule gives, on a file or on all that is below a directory. Exec is in none of them."""

    READ = READ_FILE | READ_DIR
    """Read files, list directories."""
    WRITE = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | MAKE_REG | MAKE_DIR | REMOVE_FILE | REMOVE_DIR | REFER
    """Read; make, change, rename and remove regular files and directories. No links, devices, pipes or sockets are made."""
    DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
    """Read, write and control a device."""


@dataclass(frozen=True, slots=True)
class PathRule:
    """A rule. It holds for the file that the path leads to when it is made, and not for one that takes its place later.

    Attributes:
        path: a file or a directory; symbolic links are followed.
        access: what it gives.
        required: whether it is an error if the path leads nowhere; otherwise the rule is left out.
    """

    path: Path
    access: Access
    required: bool = False


def handled_fs(abi: int) -> int:
    """The rights over files that an ABI knows: all are refused where no rule gives them."""
    count = 13 + (abi >= 2) + (abi >= 3) + (abi >= 5)
    return (1 << count) - 1


def ruleset_attributes(abi: int, tcp: bool) -> bytes:
    """struct landlock_ruleset_attr, in the size that the ABI knows.

    Args:
        abi: 1 to `NEWEST_ABI`.
        tcp: whether TCP stays allowed.
    """
    parts = [handled_fs(abi)]
    if abi >= 4:
        parts.append(0 if tcp else _TCP_RIGHTS)
    if abi >= 6:
        # Abstract sockets and processes outside: sd_notify's own socket has a path, or was connected before; a manager's
        # signals come from outside, and the threads of a process are in one domain.
        parts.append(_SCOPES)
    return struct.pack(f"<{len(parts)}Q", *parts)


def granted(access: Access, directory: bool, abi: int) -> int:
    """The bits of a rule: those of the access that the ABI knows, and that there are for a file or a directory."""
    return access.value & handled_fs(abi) & (~0 if directory else _FILE_RIGHTS)


def kernel_abi() -> int | None:
    """The ABI that the kernel offers; None without Landlock: not built in, or not switched on at boot.

    Raises:
        ConfineError: it answers otherwise.
    """
    try:
        return system_call(_CREATE_RULESET, 0, 0, _ASK_VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise ConfineError(f"the kernel does not report its Landlock version: {error.strerror}") from None


def restrict(rules: Sequence[PathRule], *, tcp: bool) -> int | None:
    """Restricts the process to these rules for good. A second call restricts it further.

    Args:
        rules: what it can still reach.
        tcp: whether it may still connect and bind by TCP. An ABI below 4 cannot forbid it.

    Returns:
        The ABI that is in force; None if this kernel has no Landlock, and nothing was restricted.

    Raises:
        ConfineError: a required path is missing; the kernel refuses; or the process has other threads already. Landlock
            takes the calling thread and what that starts: the others would stay free.
    """
    offered = kernel_abi()
    if offered is None:
        return None
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise ConfineError(f"Landlock must be applied before the first thread starts; the process has {threads} threads")
    abi = min(offered, NEWEST_ABI)
    attributes = ctypes.create_string_buffer(ruleset_attributes(abi, tcp))
    try:
        ruleset = system_call(_CREATE_RULESET, ctypes.addressof(attributes), len(attributes) - 1, 0)
    except OSError as error:
        raise ConfineError(f"the kernel does not create a Landlock ruleset (ABI {abi}): {error.strerror}") from None
    try:
        for rule in rules:
            _add(ruleset, rule, abi)
        set_no_new_privileges()
        system_call(_RESTRICT_SELF, ruleset, 0)
    except OSError as error:
        raise ConfineError(f"the Landlock rules cannot be applied: {error.strerror}") from None
    finally:
        os.close(ruleset)
    return abi


def _add(ruleset: int, rule: PathRule, abi: int) -> None:
    try:
        place = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        # What cannot be reached needs no rule.
        if not rule.required and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP):
            return
        raise ConfineError(f"{rule.path}, which the process needs, cannot be reached: {error.strerror}") from None
    try:
        directory = stat.S_ISDIR(os.fstat(place).st_mode)
        # struct landlock_path_beneath_attr is packed.
        beneath = ctypes.create_string_buffer(struct.pack("<Qi", granted(rule.access, directory, abi), place))
        system_call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.addressof(beneath), 0)
    except OSError as error:
        raise ConfineError(f"Landlock refuses the rule for {rule.path}: {error.strerror}") from None
    finally:
        os.close(place)
