"""Says who runs a command, for the audit: the user by the kernel, and whom sudo names."""

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

_NO_LOGIN = 2**32 - 1
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


def operator(environment: Mapping[str, str] = os.environ, login_uid: Path = Path("/proc/self/loginuid")) -> dict[str, str]:
    """Fields for audit records, each `NAME (UID)`.

    `os_user` and `login_user` come from the kernel: who the process runs as, and who logged in, which `su` and `sudo` do not
    change. `sudo_user` is what the environment says: root can write anything there.

    Args:
        environment: of the process.
        login_uid: the kernel's file with the user who logged in.
    """
    found = {"os_user": _named(os.getuid())}
    try:
        login = int(login_uid.read_text("ascii"))
    except (OSError, ValueError):
        login = _NO_LOGIN  # no such file, or nobody logged in: a service, a container
    if login != _NO_LOGIN:
        found["login_user"] = _named(login)
    name, uid = environment.get("SUDO_USER", ""), environment.get("SUDO_UID", "")
    if _NAME.fullmatch(name) and uid.isascii() and uid.isdigit() and len(uid) <= 10:
        found["sudo_user"] = f"{name} ({uid})"
    return found


def _named(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"? ({uid})"
