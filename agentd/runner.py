"""Starts the daemon, starts it again after what it can recover from, reloads it, stops it. Talks to the service manager."""

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from common.listening import ListenError
from common.sd_notify import Notices
from confine.errors import ConfineError
from hwsec.bootclock import read_boot_id
from hwsec.errors import BackendHung, HwsecError
from hwsec.owner import HardwareOwner
from ipc.errors import ErrorCode
from settings.errors import ConfigError

from . import VERSION
from .base.clock.clock import Clock
from .base.config.config import Config, load_config
from .base.confinement import Confinement, NeedsRestart
from .base.errors import NotProvisioned, StartError
from .base.identity import check_fallback
from .base.statelock import StateLock
from .base.user import agent_uid, leave_root
from .commands import EXIT_CONFIG, EXIT_OK, EXIT_UNAVAILABLE
from .daemon import Daemon
from .enrollment.waiting import Unprovisioned
from .sockets.acceptor import Acceptor
from .sockets.connection import Hub
from .sockets.listeners import Listeners, own_sockets
from .sockets.refusal import RefusingService, first_of
from .wiring import Assembled, assemble, connect, lock_state, open_audit

log = logging.getLogger(__name__)

RETRY_S = 5.0
DRAIN_S = 0.05
TICK_S = 1.0
START_DEADLINE_S = 60.0
"""For a TPM that is slow to answer at the start; one that hangs is tried again."""


class Runner:
    """Runs the daemon until it is asked to stop, through reloads and repairs.

    Args:
        path: the configuration file.
        inherited: sockets from the service manager, if it passed any.
    """

    def __init__(self, path: Path, inherited: Listeners | None) -> None:
        self._path = path
        self._listeners = inherited
        self._inherited = inherited is not None
        self._notices = Notices()
        self._confinement: Confinement | None = None
        self._owner: HardwareOwner | None = None
        self._lock: StateLock | None = None
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()

    async def run(self) -> int:
        """The exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        watchdog = loop.create_task(self._feed_watchdog())
        try:
            while not self._stop.is_set():
                status = await self._run_once()
                if status is not None:
                    return status
            return EXIT_OK
        finally:
            watchdog.cancel()
            self._notices.close()

    async def _run_once(self) -> int | None:
        """One start: runs to the end, or serves refusals until it is worth trying again (None)."""
        clock = Clock()
        hub = Hub(clock.monotonic)
        try:
            config = self._load_config()
            leave_root(config)
            # First the lock: who looks for another agent at its sockets is an unauthorized user to it.
            if self._lock is None or self._lock.directory != config.paths.state_dir:
                self._lock = lock_state(config)
            if self._listeners is None:
                self._listeners = own_sockets(config.paths.run_dir)
            confinement, owner = self._confine(config)
            config = confinement.identified(config)
            made = await self._assemble(config, clock, hub, owner)
            owner.on_abandon = made.core.hardware.abandon
        except NotProvisioned as error:
            try:
                check_fallback(config)
            except StartError as forbidden:
                log.error("%s", forbidden)
                why = "it has no secrets on this backend"
                return await self._cannot_start(ErrorCode.UNAVAILABLE, why, [str(forbidden)], EXIT_UNAVAILABLE)
            log.warning("NOTICE this device is not an agent yet (%s): run 'license-agent-cli provision'", error)
            return await self._await_provisioning(config, clock, owner, confinement)
        except (NeedsRestart, ConfineError) as error:
            # The service manager starts another process, confined as the configuration needs it.
            log.error("%s", error)
            return EXIT_UNAVAILABLE
        except ConfigError as error:
            for problem in error.problems:
                log.error("%s", problem)
            why = "its configuration is refused"
            return await self._cannot_start(ErrorCode.AGENT_MISCONFIGURED, why, error.problems, EXIT_CONFIG)
        except (HwsecError, StartError, ListenError) as error:
            log.error("%s", error)
            why = "it cannot open its secrets or its log"
            return await self._cannot_start(ErrorCode.UNAVAILABLE, why, [str(error)], EXIT_UNAVAILABLE)
        await self._serve(Daemon(connect(made), confinement.status, lambda: self._read_again(confinement)), hub)
        return EXIT_OK

    def _load_config(self) -> Config:
        """Reads the configuration as `_read_config`, and logs its warnings."""
        config = self._read_config()
        for warning in config.warnings:
            log.warning("%s", warning)
        return config

    def _read_again(self, confinement: Confinement) -> tuple[Config, list[str]]:
        """Reads the configuration for a daemon that runs: `base.configstatus.Read`."""
        return confinement.narrowed(confinement.identified(self._read_config()))

    def _read_config(self) -> Config:
        """Reads the configuration, within the confinement of an earlier one if there is one."""
        moved = [] if self._confinement is None else self._confinement.moved()
        if moved:
            raise NeedsRestart(f"{', '.join(map(str, moved))} was replaced or removed after this process was confined to it")
        try:
            return load_config(self._path, agent_uid())
        except PermissionError as error:
            if self._confinement is None:
                raise
            raise NeedsRestart(f"{error.filename}, which the configuration names, is out of this process's reach") from None

    def _confine(self, config: Config) -> tuple[Confinement, HardwareOwner]:
        """Applies Landlock and then starts the first thread; both happen once in the life of the process."""
        if self._confinement is not None and not self._confinement.fits(config):
            raise NeedsRestart("the configuration names other files than those that this process was confined to")
        if self._confinement is None or self._owner is None:
            self._confinement = Confinement(config, self._path, not self._inherited)
            log.info("confined: %s", self._confinement.status.describe())
            self._owner = HardwareOwner()
        return self._confinement, self._owner

    async def _assemble(self, config: Config, clock: Clock, hub: Hub, owner: HardwareOwner) -> Assembled:
        """Opens everything on the hardware's thread; what comes too late is closed again."""
        abandoned = threading.Event()

        def work() -> Assembled:
            made = assemble(config, clock, hub, owner)
            if abandoned.is_set():
                made.discard()
            return made

        try:
            return await owner.run(work, START_DEADLINE_S)
        except BackendHung:
            abandoned.set()
            raise

    async def _await_provisioning(
        self, config: Config, clock: Clock, owner: HardwareOwner, confinement: Confinement
    ) -> int | None:
        """Answers administrators, who may have the device provisioned, and refuses POS applications. Then starts again."""
        listeners, hub = self._served(), Hub(clock.monotonic)
        try:
            boot_id = read_boot_id()
            audit, _end = open_audit(config, clock, hub)
        except (StartError, HwsecError) as error:
            log.error("%s", error)
            return await self._cannot_start(ErrorCode.UNAVAILABLE, "it cannot open its log", [str(error)], EXIT_UNAVAILABLE)
        read = partial(self._read_again, confinement)
        waiting = Unprovisioned(config, owner, audit, clock, confinement.status, read, boot_id)
        refusal = RefusingService(ErrorCode.UNAVAILABLE, "this device is not an agent yet; an administrator can provision it")
        acceptors = [Acceptor(listeners.pos, hub, refusal), Acceptor(listeners.admin, hub, waiting.admin)]
        self._notices.send("READY=1", "STATUS=waiting to be provisioned")
        try:
            await self._wait_for(None, waiting.done, waiting.reload)
            await waiting.admin.finish(5.0)
            await _drain(hub)
        finally:
            for acceptor in acceptors:
                await acceptor.stop()
            audit.close()
            hub.release()
            hub.close_all()
        return EXIT_OK if self._stop.is_set() else None

    async def _cannot_start(self, code: ErrorCode, why: str, reasons: list[str], status: int) -> int | None:
        """With the service manager's sockets, answers every request with an error and tries again; else returns the status.

        Args:
            code: of the error.
            why: for everyone.
            reasons: for root on the admin socket: what exactly, and what to do.
            status: the exit status.
        """
        if not self._inherited or self._listeners is None:
            return status
        text = f"the agent is running but cannot work: {why}"
        asked = "; ask an administrator to run 'license-agent-cli status' as root"
        self._notices.send("READY=1", f"STATUS={why}; retrying every {RETRY_S:g} s")
        hub = Hub(time.monotonic)
        for_root = f"{text}: {first_of(reasons)}"
        pos = RefusingService(code, text + asked)
        admin = RefusingService(code, text + asked, for_root=for_root, reload=self._reload.set)
        acceptors = [Acceptor(self._listeners.pos, hub, pos), Acceptor(self._listeners.admin, hub, admin)]
        try:
            await self._wait_for(RETRY_S)
        finally:
            for acceptor in acceptors:
                await acceptor.stop()
            hub.close_all()
        return None

    async def _wait_for(self, seconds: float | None, *others: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._stop, self._reload, *others)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        self._reload.clear()

    def _served(self) -> Listeners:
        if self._listeners is None:
            raise RuntimeError("there are no sockets to serve")
        return self._listeners

    async def _serve(self, daemon: Daemon, hub: Hub) -> None:
        listeners = self._served()
        await daemon.start()
        # What exists now lives to the end; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        acceptors = [Acceptor(listeners.pos, hub, daemon.pos), Acceptor(listeners.admin, hub, daemon.admin)]
        self._notices.send("READY=1", f"STATUS=validating licenses for {daemon.agent_id}")
        log.info("license-agent %s is ready as %s", VERSION, daemon.agent_id)
        loop = asyncio.get_running_loop()
        ticker = loop.create_task(_tick(daemon.tick))
        courier = loop.create_task(_tick(daemon.keep_in_touch))
        reloader = loop.create_task(self._reload_on_request(daemon))
        await self._stop.wait()
        self._notices.send("STOPPING=1")
        for acceptor in acceptors:
            await acceptor.stop()
        await _drain(hub)
        for task in (ticker, courier, reloader):
            task.cancel()
        await asyncio.gather(courier, return_exceptions=True)
        try:
            await daemon.finish()
        finally:
            await asyncio.sleep(0)
            listeners.close()
        log.info("license-agent has stopped")

    async def _reload_on_request(self, daemon: Daemon) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._notices.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            daemon.reload()
            self._notices.send("READY=1")

    async def _feed_watchdog(self) -> None:
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return
        while True:
            self._notices.alive()
            await asyncio.sleep(int(microseconds) / 1e6 / 3)


async def _tick(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        try:
            await work()
        except Exception:  # housekeeping that fails once must not end it for good
            log.exception("housekeeping failed")


async def _drain(hub: Hub) -> None:
    """Reads and answers what peers had sent before the stop: until a short silence, a second at the most."""
    ends = hub.monotonic() + 1.0
    while hub.monotonic() < ends:
        before = hub.last_activity
        await asyncio.sleep(DRAIN_S)
        if hub.last_activity == before:
            return
