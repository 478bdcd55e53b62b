"""Goes back to the agent's package before, when nobody has committed the new one in time. Runs from a copy of the program.

Before an upgrade the files that RESCUE_FILES names are copied out of the program's tree, so that this works when the new tree
does not. A timer of systemd, whose units are copies too, starts it once a minute while a trial goes on. Only the standard
library and `common` are imported, and no tree of ours but the copy.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from common.files import fsync_directory, no_trace, os_problem, write_atomic, write_temporary

from .dpkg import ENVIRONMENT, Dpkg, DpkgBusy, DpkgFailed
from .packages import PACKAGE, PackageRefused, Packages
from .trial import BadTrial, Trial, counted, decode, encode, overdue

OWN = Path("/var/lib/license-agent-installer")
TIMER, SERVICE = "license-agent-rescue.timer", "license-agent-rescue.service"
UNITS = (SERVICE, TIMER)
RESCUE_FILES = (
    "common/__init__.py",
    "common/files.py",
    "common/version.py",
    "installer/__init__.py",
    "installer/agentpackage/__init__.py",
    "installer/agentpackage/dpkg.py",
    "installer/agentpackage/packages.py",
    "installer/agentpackage/rescue.py",
    "installer/agentpackage/trial.py",
)
ROOTS_OWN = ("installer.toml", "update-trust.json")
"""What root writes about trust. No update changes it, so no rollback does: it would bring back whom root no longer believes."""
SYSTEMCTL = "/usr/bin/systemctl"
SYSTEMCTL_S = 30.0
SETTLE_S = 60.0
"""How long after a boot the upgrade service has to repeat what a power cut interrupted, before the rescue goes back."""
MAX_CONFIG_FILES = 200
MAX_CONFIG_BYTES = 8 * 1024 * 1024
EXIT_OK, EXIT_FAILED = 0, 1
_LAUNCHER = """import sys

sys.dont_write_bytecode = True
sys.path.insert(0, {tree!r})

from installer.agentpackage.rescue import entry  # noqa: E402

sys.exit(entry())
"""


class RescueFailed(Exception):
    """The rescue could not be prepared; the text says why."""


class UpgradeBusy(Exception):
    """An upgrade or a return is under way in another process."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are.

    Attributes:
        own: the installer's directory.
        config: the agent's configuration.
        units: systemd's directory for root's own units, which come before those of packages.
        shipped: where the package has its units.
    """

    own: Path = OWN
    config: Path = Path("/etc/license-agent")
    units: Path = Path("/etc/systemd/system")
    shipped: Path = Path("/usr/lib/systemd/system")


def systemctl(*arguments: str) -> str:
    """Gives systemd an order. Returns what went wrong; empty if nothing did."""
    try:
        done = subprocess.run(
            [SYSTEMCTL, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SYSTEMCTL_S,
            env=dict(ENVIRONMENT),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"systemctl {arguments[0]}: {error}"
    return "" if done.returncode == 0 else f"systemctl {' '.join(arguments)}: {done.stdout.decode('utf-8', 'replace').strip()}"


def this_boot() -> str:
    """The id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def boottime() -> float:
    """Seconds since this boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Rescue:
    """The trial of a version, and the way back.

    Args:
        layout: where things are.
        dpkg: installs the package before.
        boot_id: of this boot.
        now: CLOCK_BOOTTIME, seconds.
        systemd: gives systemd an order, and returns what went wrong.
        trace: called after each write.
    """

    def __init__(
        self,
        layout: Layout,
        dpkg: Dpkg,
        boot_id: Callable[[], str] = this_boot,
        now: Callable[[], float] = boottime,
        systemd: Callable[..., str] = systemctl,
        trace: Callable[[str], None] = no_trace,
    ) -> None:
        self.packages = Packages(layout.own / "packages")
        self._layout = layout
        self._dpkg = dpkg
        self._boot_id, self._now, self._systemd, self._trace = boot_id, now, systemd, trace
        self._directory = layout.own / "rescue"
        with contextlib.suppress(FileExistsError):
            self._directory.mkdir(mode=0o700)
        self._marker = self._directory / "proving.json"
        self._outcome = self._directory / "outcome.json"

    # ---- what is known

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of everything that changes the trial.

        Raises:
            UpgradeBusy: another process holds it.
        """
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UpgradeBusy("an upgrade of the agent, or the return from one, is under way") from None
            yield
        finally:
            os.close(descriptor)

    def trial(self) -> Trial | None:
        """The trial that goes on; None without one.

        Raises:
            BadTrial: the marker cannot be read.
        """
        try:
            return decode(self._marker.read_bytes())
        except FileNotFoundError:
            return None

    def returned(self, sha256: str) -> str:
        """Why the package with this digest was taken back; empty if it was not, since it was prepared."""
        try:
            found = json.loads(self._outcome.read_bytes())
            return str(found["reason"]) if found["sha256"] == sha256 else ""
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return ""

    def forget(self) -> None:
        """Forgets that a package was taken back: it was prepared again."""
        self._outcome.unlink(missing_ok=True)

    # ---- the trial

    def begin(self, place: str, back: str) -> None:
        """Marks that the version of a place is on trial, durably. From here on the way back is open.

        Raises:
            RescueFailed: there is no package to go back to.
        """
        new, old = self.packages.kept(place), self.packages.kept(back)
        if new is None or old is None:
            raise RescueFailed("there is no package to go back to, so nothing is upgraded")
        self._write(Trial(place, new.version, new.sha256, back, old.version, self._boot_id(), self._now()))

    def end(self) -> None:
        """Ends the trial: what is installed stays."""
        self._marker.unlink(missing_ok=True)
        fsync_directory(self._directory)
        self._trace("proving.json: removed")

    def go_back(self, trial: Trial, reason: str = "") -> None:
        """Installs the package before, with the configuration before; never the agent's secrets. May be repeated.

        The caller holds the lock.

        Args:
            trial: that failed.
            reason: why, if nobody has ordered it: `returned` says it to who orders next. The first reason stays.

        Raises:
            DpkgBusy: another program is installing packages; nothing was done.
            DpkgFailed, PackageRefused, OSError: the trial goes on, and this must be tried again.
        """
        with self._dpkg.locked():
            self.go_back_locked(trial, reason)

    def go_back_locked(self, trial: Trial, reason: str = "") -> None:
        """As `go_back`, where the caller holds dpkg's lock too."""
        kept = self.packages.kept(trial.back)
        if kept is None or kept.version != trial.back_version:
            raise PackageRefused(f"the package {trial.back_version} is not kept any more; install it with apt")
        with self.packages.opened(trial.back, kept.sha256) as package:
            if reason and not self.returned(trial.sha256):
                # Before dpkg, which starts the agent that will ask for it.
                content = {"version": trial.version, "sha256": trial.sha256, "reason": reason[:400]}
                write_atomic(self._outcome, json.dumps(content).encode(), trace=self._trace)
            self._write(replace(trial, going_back=True))
            self._restore_config()
            self._dpkg.install(package)
        found = self._dpkg.status(PACKAGE)
        if found is None or not found.complete or found.version != trial.back_version:
            raise DpkgFailed(f"dpkg succeeded, but {PACKAGE} {trial.back_version} is not what is installed")
        self._trace("package: installed")
        self.end()

    def tick(self) -> str:
        """What the timer does: counts, and goes back when the time is over. Returns what was done, for the journal.

        Raises:
            everything that `go_back` does.
        """
        try:
            with self.locked():
                trial = self.trial()
                if trial is None:
                    self.disarm()
                    return "no trial goes on; the timer is removed"
                trial = counted(trial, self._boot_id(), self._now())
                self._write(trial)
                reason = overdue(trial) or self._interrupted(trial)
                if not reason:
                    return f"the trial of {trial.version} goes on: {trial.ran_s:.0f} s, {trial.boots} boots"
                self.go_back(trial, reason)
                return f"went back from {trial.version} to {trial.back_version}: {reason}"
        except (UpgradeBusy, DpkgBusy) as busy:
            return f"{busy}; it is tried again in a minute"

    def _interrupted(self, trial: Trial) -> str:
        """Why the trial has failed, if dpkg was interrupted and nobody repeats it. The caller holds the lock: nobody does now.

        What was half unpacked may not even start what would repeat it, and the agent neither.
        """
        found = self._dpkg.status(PACKAGE)
        if trial.at_s < SETTLE_S or (found is not None and found.complete):
            return ""
        return "dpkg was interrupted, and the installation was not repeated"

    # ---- what the rescue needs

    def save(self, program: Path) -> None:
        """Copies configuration and rescue program. Call before `begin`, and not while a trial goes on.

        Args:
            program: holds the folders `common` and `installer`.

        Raises:
            RescueFailed: the configuration is too large.
        """
        self._save_config()
        tree = self._directory / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        for name in RESCUE_FILES:
            (tree / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_temporary(tree / name, (program / name).read_bytes())
        write_atomic(self._directory / "run", _LAUNCHER.format(tree=str(tree)).encode(), trace=self._trace)
        for directory in (tree / "common", tree / "installer/agentpackage", tree / "installer", tree, self._directory):
            fsync_directory(directory)
        self._trace("program: copied")

    def arm(self) -> None:
        """Copies the units to where no package writes, and starts the timer. May be repeated.

        Raises:
            RescueFailed: systemd does not.
        """
        wants = self._layout.units / "timers.target.wants"
        for name in UNITS:
            write_atomic(self._layout.units / name, (self._layout.shipped / name).read_bytes(), 0o644, trace=self._trace)
        wants.mkdir(mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (wants / TIMER).symlink_to(self._layout.units / TIMER)
        fsync_directory(wants)
        self._trace("timer: enabled")
        problem = self._systemd("daemon-reload") or self._systemd("start", TIMER)
        if problem:
            raise RescueFailed(f"the rescue timer does not start, so nothing is upgraded: {problem}")

    def disarm(self) -> None:
        """Stops the timer and removes the units. What systemd answers does not matter: the next tick does it again."""
        self._systemd("stop", TIMER)
        (self._layout.units / "timers.target.wants" / TIMER).unlink(missing_ok=True)
        for name in UNITS:
            (self._layout.units / name).unlink(missing_ok=True)
        self._systemd("daemon-reload")

    def _write(self, trial: Trial) -> None:
        write_atomic(self._marker, encode(trial), trace=self._trace)

    def _save_config(self) -> None:
        saved, top = self._directory / "config", self._layout.config
        shutil.rmtree(saved, ignore_errors=True)
        shutil.rmtree(self._directory / "replaced", ignore_errors=True)
        saved.mkdir(mode=0o700)
        index: list[tuple[str, int, int, int]] = []
        size = 0
        for path in sorted(top.rglob("*")):
            info = path.lstat()
            if not stat.S_ISREG(info.st_mode) or path.name in ROOTS_OWN:
                continue
            size += info.st_size
            if len(index) >= MAX_CONFIG_FILES or size > MAX_CONFIG_BYTES:
                raise RescueFailed(f"{top} has more than {MAX_CONFIG_FILES} files or {MAX_CONFIG_BYTES} bytes; move some away")
            write_temporary(saved / str(len(index)), path.read_bytes())
            index.append((str(path.relative_to(top)), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid))
        write_atomic(saved / "index.json", json.dumps(index).encode(), trace=self._trace)

    def _restore_config(self) -> None:
        """Puts the configuration back. What is replaced may be an administrator's work: it is kept aside, and named."""
        saved, aside = self._directory / "config", self._directory / "replaced"
        aside.mkdir(mode=0o700, exist_ok=True)
        kept = []
        for number, (name, mode, uid, gid) in enumerate(json.loads((saved / "index.json").read_bytes())):
            data, path = (saved / str(number)).read_bytes(), self._layout.config / name
            with contextlib.suppress(FileNotFoundError):
                info = path.lstat()
                same = (stat.S_ISREG(info.st_mode), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
                found = path.read_bytes() if same[0] else data
                if same == (True, mode, uid, gid) and found == data:
                    continue
                if found != data:
                    write_temporary(aside / quote(name, safe=""), found)
                    kept.append(name)
            path.parent.mkdir(mode=0o755, exist_ok=True)
            new = path.with_name(f".{path.name}.new")
            write_temporary(new, data, mode)
            os.chown(new, uid, gid)
            new.replace(path)
            fsync_directory(path.parent)
            self._trace(f"{name}: restored")
        fsync_directory(aside)
        if kept:
            _say(f"put back: {', '.join(sorted(kept))}; what was there instead is in {aside}")


def _say(text: str) -> None:
    sys.stderr.write(f"license-agent-rescue: {text}\n")


def entry() -> int:
    """What the launcher of the rescue copy calls."""
    parser = argparse.ArgumentParser(
        prog="license-agent-rescue",
        description="Goes back to the former package of the license agent if nobody has committed the new one.",
        epilog="Exit status: 0 success; 1 the return failed, and the timer tries again; 2 wrong usage.",
    )
    parser.parse_args()
    os.umask(0o077)
    try:
        _say(Rescue(Layout(), Dpkg()).tick())
    except (BadTrial, DpkgFailed, PackageRefused, ValueError) as error:
        _say(str(error))
        return EXIT_FAILED
    except OSError as error:
        _say(os_problem(error, str(OWN)))
        return EXIT_FAILED
    return EXIT_OK
