"""Has dpkg replace the agent's own package, and finds out whether the new agent works. systemd starts it when a job appears.

It is apart from apply.py because dpkg and the scripts of a package need most of root's rights; what restarts a till does not.
For the same rights it keeps the configuration of other products, and puts it back.
"""

import argparse
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common.files import is_full, no_trace, os_problem
from common.logqueue import LogQueue, PrefixFormatter, StreamSink, encoder, install
from ipc.adminclient import AdminClient
from ipc.errors import LicenseAgentError
from ipc.installermessages import Check

from . import VERSION
from .agentpackage.dpkg import Dpkg, DpkgBusy, DpkgFailed, DpkgFull, Status
from .agentpackage.packages import PACKAGE, PackageRefused, other
from .agentpackage.repack import RepackFailed, repack
from .agentpackage.rescue import OWN, Layout, Rescue, RescueFailed, UpgradeBusy
from .agentpackage.trial import BadTrial, Trial
from .apply import EXIT_FAILED, EXIT_OK, perform_job
from .backends.deb import BUSY, NO_ROOM
from .config import ProductConfig, load_config
from .jobs import UPGRADES, Examine, Job, RestoreConfig, SaveConfig, Upgrade
from .pos.configsaves import SaveRefused, restore, save
from .programs import ASK_S, SYSTEMCTL, Run, checked, failed, run

log = logging.getLogger("upgrade")

AGENT_UNIT = "license-agent.service"
CLI = "/usr/bin/license-agent-cli"
ADMIN_SOCKET = "/run/license-agent/admin.sock"
HEALTH_S = 60.0
"""How long the agent may take to say how it is: it is tried until then."""
START_S, LOOK_S = 60.0, 2.0
"""How long the agent may take to start once dpkg has ended, whose scripts wait for it too; and how often that is looked at."""
MAX_RESTARTS = 5
"""How often systemd may have started an agent again that does not come up; one that fails so often is waited for no longer."""
WORKS = ("fine", "needs_attention")
"""What a working agent says of itself. An expiring certificate, or a server out of reach, is no reason to go back."""


class _NoRoom(Exception):
    """The disk is full, and the package before is installed."""


Build = Callable[[], str]
"""Asks the running agent which build it is; raises LicenseAgentError, OSError."""


def running_build(path: str = ADMIN_SOCKET, agent_uid: int | None = None) -> str:
    """Asks the agent which package it was started from; "" if from none.

    Args:
        path: its admin socket.
        agent_uid: its UID where its user is not named `license-agent`.

    Raises:
        LicenseAgentError: it does not answer, or somebody else does.
    """
    with AdminClient(path, deadline=ASK_S, agent_uid=agent_uid) as client:
        return str(client.call("system_info")["build"] or "")


class Upgrader:
    """Does the jobs for the agent's own package.

    Args:
        rescue: the trial and the way back.
        dpkg: installs packages.
        run: runs a program.
        build: asks the running agent.
        program: holds the folders of the running program.
        pack: makes a package of what is installed, for a machine on which none is kept.
        trace: called after each write.
        sleep: waits for so many seconds.
        saves: holds the configuration of other products as it was; made if it is not there.
    """

    def __init__(
        self,
        rescue: Rescue,
        dpkg: Dpkg,
        run: Run,
        build: Build,
        program: Path,
        pack: Callable[[], Path],
        trace: Callable[[str], None] = no_trace,
        sleep: Callable[[float], None] = time.sleep,
        saves: Path = OWN / "config",
    ) -> None:
        self._rescue, self._dpkg, self._run, self._build = rescue, dpkg, run, build
        self._program, self._pack, self._trace, self._sleep, self._saves = program, pack, trace, sleep, saves

    def do(self, job: Job, product: ProductConfig) -> tuple[Check, ...]:
        """Does a job. What cannot be done or looked at is a check that failed."""
        if isinstance(job, SaveConfig | RestoreConfig):
            return (self.configuration(job, product),)
        if product.backend != "deb":
            return (failed("job", f"{product.name} is a matter of license-agent-apply.service"),)
        match job:
            case Upgrade():
                return (self.install(job.place, job.sha256),)
            case Examine():
                return self.examine()
        return (failed("job", "the package restarts the agent itself"),)

    def configuration(self, job: SaveConfig | RestoreConfig, product: ProductConfig) -> Check:
        """Keeps a product's configuration or puts it back; the text says what was put back. May be repeated."""
        if product.config is None:
            return failed("config", f"[product.{product.name}] has no 'config'")
        kept = self._saves / product.name
        try:
            self._saves.mkdir(mode=0o700, exist_ok=True)
            if isinstance(job, SaveConfig):
                save(product.config, kept, os.geteuid(), self._trace)
                return Check(name="config", ok=True, text="")
            return Check(name="config", ok=True, text=restore(product.config, kept, os.geteuid(), self._trace)[:500])
        except SaveRefused as refused:
            return failed("config", str(refused))
        except OSError as error:
            return failed(NO_ROOM if is_full(error) else "config", os_problem(error, str(product.config)))

    def install(self, place: str, sha256: str) -> Check:
        """Installs the package of a place on trial, or ends the trial by going back to it. May be repeated."""
        try:
            with self._rescue.locked():
                trial = self._rescue.trial()
                if trial is not None and trial.back == place:
                    self._rescue.go_back(trial)
                elif trial is not None or not self._installed(place):
                    self._try(place, sha256, trial)
        except (UpgradeBusy, DpkgBusy) as busy:
            return failed(BUSY, str(busy))
        except _NoRoom as full:
            return failed(NO_ROOM, str(full))
        except (DpkgFailed, PackageRefused, RepackFailed, RescueFailed) as problem:
            return failed("install", str(problem))
        except BadTrial as bad:
            return failed("install", f"the marker of the trial cannot be read: {bad}")
        except OSError as error:
            return failed(NO_ROOM if is_full(error) and self._untouched() else "install", os_problem(error))
        return Check(name="install", ok=True, text="")

    def _untouched(self) -> bool:
        """Whether no trial has begun, so that the agent's package is the one before."""
        try:
            return self._rescue.trial() is None
        except (BadTrial, OSError):
            return False

    def _try(self, place: str, sha256: str, trial: Trial | None) -> None:
        if trial is not None and (trial.going_back or trial.place != place):
            raise UpgradeBusy(f"the return to {trial.back_version} has begun")
        packages = self._rescue.packages
        with packages.opened(place, sha256) as package, self._dpkg.locked():
            if trial is None:
                self._keep_present(other(place))
                self._rescue.save(self._program)
                self._rescue.begin(place, other(place))
            try:
                self._rescue.arm()
            except RescueFailed:
                if trial is None:
                    self._rescue.end()
                raise
            try:
                # The agent orders again what it does not know to be done, while the scripts that have started it still run. To
                # install once more would restart it once more, and so on.
                if trial is None or not self._installed(place):
                    self._dpkg.install(package)
                    self._require(place)
                self._require_start()
            except DpkgFailed as problem:
                # The scripts of the package before restart the installer, so nobody may be left who waits for this job's
                # result: the reason is kept for whoever asks later. A full disk is no reason.
                full = isinstance(problem, DpkgFull)
                if (trial := self._rescue.trial()) is not None:
                    self._rescue.go_back_locked(trial, "" if full else str(problem))
                kind = _NoRoom if full else DpkgFailed
                raise kind(f"{problem}; went back to the package before") from None
            self._trace("package: installed")

    def _keep_present(self, place: str) -> None:
        """Makes sure that the package that runs is kept in a place."""
        found = self._dpkg.status(PACKAGE)
        if found is None or not found.complete:
            raise RescueFailed(f"{PACKAGE} is not installed whole, so there is no way back; run: dpkg --configure -a")
        packages = self._rescue.packages
        kept = packages.kept(place)
        if kept is not None and kept.version == found.version:
            # A damaged package is no way back.
            with packages.opened(place, kept.sha256):
                return
        made = self._pack()
        try:
            with made.open("rb") as file:
                packages.put(place, file, found.version, self._trace)
        finally:
            made.unlink(missing_ok=True)

    def _installed(self, place: str) -> bool:
        """Whether the package of a place is what is installed, whole."""
        kept = self._rescue.packages.kept(place)
        return kept is not None and self._dpkg.status(PACKAGE) == Status(kept.version, complete=True)

    def _require(self, place: str) -> None:
        if not self._installed(place):
            found = self._dpkg.status(PACKAGE)
            raise DpkgFailed(f"dpkg succeeded, but {PACKAGE} is {'not there' if found is None else found.version} afterward")

    def _require_start(self) -> None:
        """Makes sure that the new agent has started: if it has not, there is nobody who could order the way back."""
        waited = 0.0
        while (active := self._run([SYSTEMCTL, "is-active", "--", AGENT_UNIT], ASK_S)).status != 0:
            # systemd begins to count again where a package's scripts restart the unit.
            counted = self._run([SYSTEMCTL, "show", "--property=NRestarts", "--value", "--", AGENT_UNIT], ASK_S).output
            restarts = int(counted) if counted.isdecimal() else 0
            if waited >= START_S or restarts >= MAX_RESTARTS:
                is_now = f"{AGENT_UNIT} is {active.output or 'not active'} after {restarts} restarts"
                raise DpkgFailed(f"the new agent does not start: {is_now}")
            self._sleep(LOOK_S)
            waited += LOOK_S

    def examine(self) -> tuple[Check, ...]:
        """Finds out whether the agent that was installed runs and works."""
        active = self._run([SYSTEMCTL, "is-active", "--", AGENT_UNIT], ASK_S)
        return (checked("unit", active, f"{AGENT_UNIT} does not run"), self._health(), self._version())

    def _health(self) -> Check:
        # Not by its status alone: a command that cannot even start may end with the status of "needs attention".
        ran = self._run([CLI, "--json", "healthcheck"], HEALTH_S)
        try:
            verdict = json.JSONDecoder().raw_decode(ran.output, ran.output.find("{"))[0]["verdict"]
        except (ValueError, KeyError, TypeError, IndexError):
            verdict = None
        if ran.status in (0, 1) and verdict in WORKS:
            return Check(name="health", ok=True, text="")
        return failed("health", f"license-agent-cli healthcheck: {ran.output or 'it says nothing'}")

    def _version(self) -> Check:
        found = self._dpkg.status(PACKAGE)
        if found is None or not found.complete:
            return failed("version", f"dpkg is at work on {PACKAGE}, or was interrupted")
        try:
            build = self._build()
        except (LicenseAgentError, OSError, KeyError) as error:
            return failed("version", f"the agent does not say which version it is: {error}")
        if build == found.version:
            return Check(name="version", ok=True, text="")
        runs = build or "of no package"
        return failed("version", f"the agent that runs is {runs}, the package {found.version}; it was not restarted")


def entry() -> None:
    """The console script."""
    parser = argparse.ArgumentParser(
        prog="license-agent-upgrade",
        description="Upgrades the license agent's own package, by a job of license-agent-installer. systemd starts it.",
        epilog="Exit status: 0 the job has a result, or there is no job; 1 the job cannot be read or done; 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"license-agent-upgrade {VERSION}")
    parser.parse_args()
    lines = LogQueue(encoder(PrefixFormatter()), StreamSink())
    install(lines)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    try:
        dpkg, layout = Dpkg(), Layout()
        work = layout.own / "work"
        upgrader = Upgrader(
            Rescue(layout, dpkg), dpkg, run, running_build, Path(__file__).parents[1], lambda: repack(PACKAGE, work)
        )
        status = EXIT_OK if perform_job(UPGRADES, load_config, upgrader.do) else EXIT_FAILED
    except OSError as error:
        log.error("%s", os_problem(error, str(OWN)))
        status = EXIT_FAILED
    finally:
        lines.finish()
    sys.exit(status)
