"""Reads the machine for the checks: files, programs, the agent's status. Judges nothing and changes nothing.

Every path goes through `Machine`, below a root that is `/` in production and a made-up tree in tests.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

from ipc.posclient.policy import AgentRefused

from .. import health
from ..agent import Agent, NotPermitted
from .layout import Destination, Layout, address_of, read_layout

MAX_READ_BYTES, PIECE_BYTES = 4 * 1024 * 1024, 64 * 1024
PROGRAM_DEADLINE_S = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CannotTell(Exception):
    """A check cannot be made.

    Attributes:
        needs: what would allow it.
    """

    def __init__(self, text: str, needs: str = "") -> None:
        super().__init__(text)
        self.needs = needs


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    status: int
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True)
class Stat:
    """What the file system says of a file.

    Attributes:
        kind: `file`, `directory`, `socket`, `character device`, `link` or `other`.
        mode: permission bits.
        uid: owner.
        gid: group.
        mtime: last change, seconds since 1970.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: float = 0.0


@dataclass(frozen=True, slots=True)
class Room:
    """What a file system has left.

    Attributes:
        free_bytes: for others than root.
        free_inodes: likewise; None where the file system counts none.
        read_only: whether it is mounted read-only.
    """

    free_bytes: int
    free_inodes: int | None
    read_only: bool


@dataclass(frozen=True, slots=True)
class User:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str


_KINDS = {0o100000: "file", 0o040000: "directory", 0o140000: "socket", 0o020000: "character device", 0o120000: "link"}


def run_program(command: Sequence[str]) -> Ran:
    """Runs a program to its end, without a shell and without the caller's environment.

    Raises:
        FileNotFoundError: it is not installed.
        subprocess.TimeoutExpired: it did not end within a minute.
    """
    program = command[0]
    if program.startswith("license-agent"):
        beside = Path(sys.argv[0]).resolve().with_name(program)
        program = str(beside) if beside.exists() else program
    done = subprocess.run(
        [program, *command[1:]],
        capture_output=True,
        check=False,
        timeout=PROGRAM_DEADLINE_S,
        env={"PATH": _PATH, "LC_ALL": "C", "SYSTEMD_PAGER": ""},
        stdin=subprocess.DEVNULL,
    )
    return Ran(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def _piece(file: BinaryIO, limit: int) -> bytes:
    """The next piece of a file, up to `limit` bytes from its beginning."""
    return file.read(min(PIECE_BYTES, max(limit - file.tell(), 0)))


@dataclass
class Machine:
    """The machine that is looked at.

    Attributes:
        agent: asks the running agent; None if nobody is to be asked.
        now: seconds since 1970.
        config: the agent's configuration file.
        root: below which all paths are.
        run: runs a program.
        uid: who looks.
        agent_uid: the agent's UID where its user is not named `license-agent`.
        deep: whether checks may take minutes.
    """

    agent: Agent | None
    now: float
    config: Path = Path("/etc/license-agent/config.toml")
    root: Path = Path("/")
    run: Callable[[Sequence[str]], Ran] = run_program
    uid: int = field(default_factory=os.geteuid)
    agent_uid: int | None = None
    deep: bool = False

    def ask_for_root(self) -> str:
        """What to do about something that only root may see; empty if root looks."""
        return "" if self.uid == 0 else "run it as root: sudo license-agent-cli doctor"

    # Files

    def at(self, path: Path | str) -> Path:
        """Where a path of the machine is."""
        return self.root / str(path).lstrip("/")

    def text(self, path: Path | str) -> str:
        """The content of a file, at most 4 MiB; raises OSError with the machine's name of it."""
        return self.bytes(path).decode("utf-8", "replace")

    def bytes(self, path: Path | str, limit: int = MAX_READ_BYTES) -> bytes:
        """The same as bytes."""
        with self.at(path).open("rb") as file:
            # In pieces: for a file of /proc/sys the kernel takes as much memory as is asked for, and has not always so much.
            return b"".join(iter(partial(_piece, file, limit), b""))

    def text_or(self, path: Path | str, default: str = "") -> str:
        """The content of a file that need not exist."""
        try:
            return self.text(path)
        except (FileNotFoundError, NotADirectoryError):
            return default

    def names(self, directory: Path | str) -> list[str]:
        """What is in a directory, sorted; nothing if there is none."""
        try:
            return sorted(os.listdir(self.at(directory)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stat(self, path: Path | str, *, follow: bool = False) -> Stat | None:
        """What is at a path; None if nothing is."""
        try:
            found = os.stat(self.at(path), follow_symlinks=follow)
        except (FileNotFoundError, NotADirectoryError):
            return None
        kind = _KINDS.get(found.st_mode & 0o170000, "other")
        return Stat(kind, found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime)

    def link_target(self, path: Path | str) -> str | None:
        """Where a symbolic link points; None if there is no link."""
        try:
            return os.readlink(self.at(path))
        except OSError:
            return None

    def room(self, path: Path | str) -> Room:
        """What the file system of a path has left."""
        found = os.statvfs(self.at(path))
        inodes = found.f_favail if found.f_files else None
        return Room(found.f_bavail * found.f_frsize, inodes, bool(found.f_flag & os.ST_RDONLY))

    # Programs

    def program(self, *command: str) -> Ran:
        """Runs a program that only looks; raises CannotTell if it cannot be run."""
        try:
            return self.run(command)
        except FileNotFoundError:
            raise CannotTell(f"the command {command[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise CannotTell(f"{command[0]} did not end within {PROGRAM_DEADLINE_S:.0f} s") from None

    # Users

    @cached_property
    def users(self) -> dict[str, User]:
        """The machine's own users by name; those of a directory service are not among them."""
        found = {}
        for line in self.text("/etc/passwd").splitlines():
            parts = line.split(":")
            if len(parts) == 7 and parts[2].isdigit() and parts[3].isdigit():
                found[parts[0]] = User(parts[0], int(parts[2]), int(parts[3]), parts[5], parts[6])
        return found

    @cached_property
    def groups(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Number and members of the machine's own groups."""
        found = {}
        for line in self.text("/etc/group").splitlines():
            parts = line.split(":")
            if len(parts) == 4 and parts[2].isdigit():
                found[parts[0]] = (int(parts[2]), tuple(name for name in parts[3].split(",") if name))
        return found

    def user_name(self, uid: int) -> str:
        """A user's name, or the number."""
        return next((user.name for user in self.users.values() if user.uid == uid), f"uid {uid}")

    def group_name(self, gid: int) -> str:
        """A group's name, or the number."""
        return next((name for name, (number, _) in self.groups.items() if number == gid), f"gid {gid}")

    # The agent

    @cached_property
    def layout(self) -> Layout:
        """Where the agent's things are, by its configuration."""
        try:
            return read_layout(self.config, self.text)
        except PermissionError:
            # With the package's paths instead, a check might look at places that this agent does not use.
            raise CannotTell(f"this user may not read {self.config}", self.ask_for_root()) from None

    @property
    def core_uid(self) -> int:
        """The agent's UID."""
        if self.agent_uid is not None:
            return self.agent_uid
        if not self.layout.is_packaged:
            found = self.stat(self.layout.state)
            if found is not None:
                return found.uid  # in a checkout, the agent runs as the user who started it
        user = self.users.get("license-agent")
        if user is None:
            raise CannotTell("there is no user license-agent", "install the package license-agent, or give --agent-uid")
        return user.uid

    @cached_property
    def status(self) -> dict[str, Any]:
        """The agent's reply to `status`; only `health` if it does not work.

        Raises:
            CannotTell: this user may not ask.
        """
        if self.agent is None:
            return {"health": {"verdict": health.NOT_WORKING, "findings": []}}
        try:
            return self.agent.ask_health()
        except NotPermitted as error:
            raise CannotTell(f"{error}", self.ask_for_root()) from None
        except AgentRefused as error:
            raise CannotTell(f"{error}") from None

    def hosts(self) -> dict[str, list[str]]:
        """The addresses of names in lower case, by /etc/hosts."""
        found: dict[str, list[str]] = {}
        for line in self.text_or("/etc/hosts").splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            for name in names:
                found.setdefault(name.lower(), []).append(address)
        return found

    def destinations(self) -> tuple[Destination, ...]:
        """Where the link connects: by its configuration; else by the agent, which a server was named to at provisioning."""
        if self.layout.destinations:
            return self.layout.destinations
        try:
            server = self.status.get("server") or {}
        except CannotTell:
            server = {}
        found = address_of(str(server.get("url", "")))
        return () if found is None else (Destination("provisioned", *found),)

    def told(self, *names: str) -> Any:
        """One member of the agent's status; raises CannotTell where the agent gives none."""
        value: Any = self.status
        for name in names:
            if not isinstance(value, dict) or name not in value:
                raise CannotTell("the running agent does not say; see agent.verdict")
            value = value[name]
        return value
