"""Runs dpkg for one package, with a clean environment and a bound, and reads its database.

Only the standard library and `common` are imported: the rescue copy runs this.
"""

import contextlib
import errno
import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import os_problem

DPKG = ("/usr/bin/dpkg",)
ADMIN = Path("/var/lib/dpkg")
DPKG_S = 300.0
"""How long dpkg may take, maintainer scripts with it."""
KILL_S = 10.0
"""How long dpkg may take to end when it is asked to."""
MAX_STATUS_BYTES = 64 * 1024 * 1024
MAX_OUTPUT_CHARS = 350
"""What of dpkg's output a reason has, from its end. The rescue keeps 400 characters of a reason."""
ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    # dpkg leaves its frontend's lock to us, who hold it.
    "DPKG_FRONTEND_LOCKED": "true",
    # Where /proc does not show process 1, the scripts' systemctl could not find out that this is no chroot.
    "SYSTEMD_IGNORE_CHROOT": "1",
}
LOCK = "lock-frontend"
INSTALLED = "install ok installed"


class DpkgBusy(Exception):
    """Another program is changing packages. Nothing was done; it may be tried again."""


class DpkgFailed(Exception):
    """dpkg did not end with success. The text says how it ended."""


class DpkgFull(DpkgFailed):
    """dpkg found no room on the disk: nothing is wrong with the package."""


@dataclass(frozen=True, slots=True)
class Status:
    """What dpkg knows of an installed package.

    Attributes:
        version: of the package.
        complete: it is installed whole; dpkg was not interrupted and is not at work on it.
    """

    version: str
    complete: bool


def install_command(dpkg: Sequence[str], package: str) -> list[str]:
    """The command that installs a package, a lower version than the one that is there too.

    Args:
        dpkg: the program, and options that come before all others.
        package: path of the .deb.
    """
    # Whoever changed a configuration file keeps it, and nobody is asked. Whether the version may be lower was judged before.
    return [*dpkg, "--force-confold", "--force-confdef", "--force-downgrade", "--install", package]


def last_words(output: str) -> str:
    """Returns the end of what dpkg has printed, on one line: without its count of the files it knows, and from a whole word on.

    Args:
        output: as dpkg printed it, of any length.
    """
    said = " ".join(re.sub(r"\(Reading database .*? currently installed\.\)", " ", output, flags=re.DOTALL).split())
    if len(said) <= MAX_OUTPUT_CHARS:
        return said
    return f"… {said[-MAX_OUTPUT_CHARS:].partition(' ')[2] or said[-MAX_OUTPUT_CHARS:]}"


def parse_status(text: str, package: str) -> Status | None:
    """Finds a package in dpkg's status file; None if it is not there, or removed.

    Args:
        text: of the file.
        package: its name.
    """
    found = re.search(rf"^Package: {re.escape(package)}\n(?:.+\n)*", text, re.MULTILINE)
    if found is None:
        return None
    state = re.search(r"^Status: (.*)$", found[0], re.MULTILINE)
    version = re.search(r"^Version: (\S+)$", found[0], re.MULTILINE)
    if state is None or version is None or state[1].endswith((" not-installed", " config-files")):
        return None
    return Status(version[1], state[1] == INSTALLED)


def read_status(admin: Path, package: str) -> Status | None:
    """Reads it from dpkg's directory.

    While dpkg is at work, or after it was interrupted, what it has done is noted in files of its folder `updates`, and the
    status file still says what was before.

    Raises:
        OSError: the file cannot be read.
    """
    for note in (admin / "updates").iterdir():
        if note.name.isdigit():
            try:
                text = note.read_bytes().decode("utf-8", "replace")
            except FileNotFoundError:  # dpkg is about to end, and has it in the status file in a moment
                return Status("", complete=False)
            if re.search(rf"^Package: {re.escape(package)}$", text, re.MULTILINE):
                noted = parse_status(text, package)
                return Status("" if noted is None else noted.version, complete=False)
    with (admin / "status").open("rb") as file:
        return parse_status(file.read(MAX_STATUS_BYTES).decode("utf-8", "replace"), package)


class Dpkg:
    """dpkg on this machine.

    Args:
        command: the program, and options that come before all others.
        admin: its directory.
        within_s: how long it may take, seconds.
    """

    def __init__(self, command: Sequence[str] = DPKG, admin: Path = ADMIN, within_s: float = DPKG_S) -> None:
        self._command = command
        self.admin = admin
        self._within_s = within_s

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock that dpkg, apt and others take before they change packages.

        Raises:
            DpkgBusy: somebody else holds it.
        """
        descriptor = os.open(self.admin / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise DpkgBusy("another program is installing packages; the update waits until it has ended") from None
            yield
        finally:
            os.close(descriptor)

    def status(self, package: str) -> Status | None:
        """What is installed of a package."""
        return read_status(self.admin, package)

    def install(self, descriptor: int) -> None:
        """Installs the package that a descriptor leads to: the file that was hashed, whatever its name leads to by now.

        The caller holds the lock.

        Raises:
            DpkgFailed: dpkg failed, or was ended after its time.
        """
        self._run(install_command(self._command, f"/proc/self/fd/{descriptor}"), (descriptor,))

    def _run(self, command: list[str], descriptors: tuple[int, ...]) -> None:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                env=dict(ENVIRONMENT),
                cwd="/",
                umask=0o022,
                start_new_session=True,
            )
        except OSError as error:
            raise DpkgFailed(os_problem(error, command[0])) from None
        with process:
            try:
                output, _ = process.communicate(timeout=self._within_s)
            except subprocess.TimeoutExpired:
                self._end(process)
                raise DpkgFailed(f"dpkg did not end within {self._within_s:g} s") from None
        if process.returncode != 0:
            said = output.decode("utf-8", "replace")
            kind = DpkgFull if os.strerror(errno.ENOSPC) in " ".join(said.split()) else DpkgFailed
            raise kind(f"dpkg ended with status {process.returncode}: {last_words(said)}")

    @staticmethod
    def _end(process: "subprocess.Popen[bytes]") -> None:
        """Ends dpkg and its scripts, which are its process group."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            try:
                process.communicate(timeout=KILL_S)
            except subprocess.TimeoutExpired:
                continue
            return
