"""Decides which user the agent runs as: never root."""

import os
import pwd
from pathlib import Path

from hwsec.secretmem import forbid_dumps
from ipc.posclient.trust import AGENT_USER

from .config.config import Config
from .errors import StartError


def agent_uid() -> int:
    """Whose file the configuration may be, besides root's."""
    if os.geteuid() != 0:
        return os.geteuid()
    try:
        return pwd.getpwnam(AGENT_USER).pw_uid
    except KeyError:
        return 0


def unreadable(path: Path, config: Config) -> str | None:
    """Why the installed agent's user cannot read the configuration that root can; None if it can, or nobody else is meant.

    Editors that replace a file leave it to root. The agent would notice at its next start or reload.
    """
    try:
        user, kept = pwd.getpwnam(AGENT_USER), config.paths.state_dir.stat()
        file = path.stat()
    except (KeyError, OSError):
        return None
    if os.geteuid() != 0 or kept.st_uid != user.pw_uid:
        return None
    groups = os.getgrouplist(AGENT_USER, user.pw_gid)
    bit = 0o400 if file.st_uid == user.pw_uid else 0o040 if file.st_gid in groups else 0o004
    return None if file.st_mode & bit else f"{path}: the agent's user cannot read it: run 'chown {AGENT_USER}: {path}'"


def leave_root(config: Config) -> None:
    """As root, goes on as the owner of the state directory, for good; otherwise does nothing.

    Raises:
        StartError: the directory does not exist, or belongs to root.
    """
    if os.geteuid() != 0:
        return
    directory = config.paths.state_dir
    try:
        info = directory.stat()
    except FileNotFoundError:
        raise StartError(f"the directory {directory} does not exist; create it (owner license-agent)") from None
    if info.st_uid == 0:
        raise StartError(f"license-agent does not run as root: give {directory} to its own user (chown license-agent)")
    if config.tpm.enabled:
        # What is imported later might not be readable for that user.
        from hwsec.tpm import preload_library

        preload_library()
    try:
        os.initgroups(pwd.getpwuid(info.st_uid).pw_name, info.st_gid)
    except KeyError:
        os.setgroups([])
    os.setgid(info.st_gid)
    os.setuid(info.st_uid)
    forbid_dumps()
