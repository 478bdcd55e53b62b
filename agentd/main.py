"""`license-agent`: the only place where the parts are wired together, and where clock and process are touched."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from confine.errors import ConfineError
from confine.noexec import forbid_exec
from hwsec.errors import BackendHung, HwsecError
from hwsec.owner import HardwareOwner
from hwsec.secretmem import forbid_dumps
from ipc.errors import ErrorCode

from . import VERSION
from .audit.log import AuditLog
from .base import journal
from .base.clock import Clock
from .base.config import Config, ConfigError, load_config
from .base.confinement import Cage, Confinement
from .base.sd_notify import Notices
from .base.statelock import StateLock
from .commands import COMMANDS, EXIT_CONFIG, EXIT_FAILED, EXIT_OK, EXIT_UNAVAILABLE, parser
from .daemon import Daemon
from .enrollment.by_hand import agent_uid, leave_root
from .enrollment.recovery import check_fallback
from .enrollment.waiting import Unprovisioned
from .sockets.acceptor import Acceptor
from .sockets.connection import Hub
from .sockets.listeners import ListenError, Listeners, inherited_sockets, own_sockets
from .sockets.refusal import MinimalService
from .wiring import NotProvisioned, Parts, StartError, assemble, lock_state, open_audit

log = logging.getLogger(__name__)

RETRY_S = 5.0
DRAIN_S = 0.05
TICK_S = 1.0
START_DEADLINE_S = 60.0
"""For a TPM that is slow to answer at the start; one that hangs is tried again."""


class CageOutgrown(Exception):
    """The process was confined to other files than those that it would need now; only a new one can have them."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text}; restart the agent (systemctl restart license-agent)")


class Runner:
    """Runs the daemon until it is told to stop, through reloads and repairs.

    Args:
        path: the configuration file.
        inherited: sockets from the service manager, if it passed any.
    """

    def __init__(self, path: Path, inherited: Listeners | None) -> None:
        self._path = path
        self._listeners = inherited
        self._inherited = inherited is not None
        self._notices = Notices()
        self._cage: Cage | None = None
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
        hub_box: list[Hub] = []
        parts_box: list[Parts] = []

        loop = asyncio.get_running_loop()

        def end_of_tick() -> None:
            parts_box[0].audit.flush()
            hub_box[0].release()

        def schedule() -> None:
            loop.call_soon(end_of_tick)

        clock = Clock()
        try:
            config = self._load_config()
            leave_root(config)
            if self._listeners is None:
                self._listeners = own_sockets(config.paths.run_dir)
            cage, owner = self._confine(config)
            config = cage.identified(config)
            if self._lock is None or self._lock.directory != config.paths.state_dir:
                self._lock = lock_state(config)
            parts = await self._assemble(config, clock, schedule, owner)
            owner.on_abandon = parts.hardware.abandon
        except NotProvisioned as error:
            log.warning("%s", error)
            try:
                check_fallback(config)
            except StartError as forbidden:
                log.error("%s", forbidden)
                return await self._cannot_start(ErrorCode.UNAVAILABLE, "it has no secrets on this backend", EXIT_UNAVAILABLE)
            log.warning("NOTICE this device is no agent yet; 'license-agent-cli provision' makes it one")
            return await self._await_provisioning(config, clock, owner, Confinement(True, cage.landlock_abi))
        except (CageOutgrown, ConfineError) as error:
            # Its end is what the service manager starts it anew for, in a cage that fits.
            log.error("%s", error)
            return EXIT_UNAVAILABLE
        except ConfigError as error:
            for problem in error.problems:
                log.error("%s", problem)
            return await self._cannot_start(ErrorCode.AGENT_MISCONFIGURED, "its configuration is refused", EXIT_CONFIG)
        except (HwsecError, StartError, ListenError) as error:
            log.error("%s", error)
            return await self._cannot_start(ErrorCode.UNAVAILABLE, "it cannot open its secrets or its log", EXIT_UNAVAILABLE)
        parts_box.append(parts)
        hub = Hub(clock.monotonic, lambda: parts.audit.pending, parts.audit.flush)
        hub_box.append(hub)
        await self._serve(Daemon(parts, hub, Confinement(True, cage.landlock_abi)), hub, cage)
        return EXIT_OK

    def _load_config(self) -> Config:
        """Reads the configuration, if need be in the cage that an earlier one has made."""
        moved = [] if self._cage is None else self._cage.moved()
        if moved:
            raise CageOutgrown(
                f"what stands at {', '.join(map(str, moved))} is not what stood there when this process was confined"
            )
        try:
            config = load_config(self._path, agent_uid())
        except PermissionError as error:
            if self._cage is None:
                raise
            raise CageOutgrown(f"{error.filename}, which the configuration names, is out of this process's reach") from None
        return config

    def _confine(self, config: Config) -> tuple[Cage, HardwareOwner]:
        """Landlock, and then the first thread; both once in the life of the process."""
        if self._cage is not None and not self._cage.fits(config):
            raise CageOutgrown("the configuration names other files than those that this process was confined to")
        if self._cage is None or self._owner is None:
            self._cage = Cage(config, self._path, not self._inherited)
            log.info("confined: %s", Confinement(True, self._cage.landlock_abi).told())
            self._owner = HardwareOwner()
        return self._cage, self._owner

    async def _assemble(self, config: Config, clock: Clock, schedule: Callable[[], None], owner: HardwareOwner) -> Parts:
        """Opens everything on the hardware's thread; what comes too late is closed again."""
        given_up = threading.Event()

        def work() -> Parts:
            parts = assemble(config, clock, schedule, owner)
            if given_up.is_set():
                parts.discard()
            return parts

        try:
            return await owner.run(work, START_DEADLINE_S)
        except BackendHung:
            given_up.set()
            raise

    async def _await_provisioning(
        self, config: Config, clock: Clock, owner: HardwareOwner, confinement: Confinement
    ) -> int | None:
        """Answers administrators, who may have the device provisioned; POS applications are refused. Then starts again."""
        listeners = self._listeners
        if listeners is None:
            raise RuntimeError("no sockets to serve")
        loop = asyncio.get_running_loop()
        audit_box: list[AuditLog] = []
        hub_box: list[Hub] = []

        def end_of_tick() -> None:
            audit_box[0].flush()
            hub_box[0].release()

        def schedule() -> None:
            loop.call_soon(end_of_tick)

        try:
            audit, _end = open_audit(config, clock, schedule)
        except StartError as error:
            log.error("%s", error)
            return await self._cannot_start(ErrorCode.UNAVAILABLE, "it cannot open its log", EXIT_UNAVAILABLE)
        audit_box.append(audit)
        hub = Hub(clock.monotonic, lambda: audit.pending, audit.flush)
        hub_box.append(hub)
        waiting = Unprovisioned(config, owner, audit, clock, confinement)
        refusal = MinimalService(
            ErrorCode.UNAVAILABLE, "this device is no license agent yet; an administrator can provision it"
        )
        acceptors = [Acceptor(listeners.pos, hub, refusal), Acceptor(listeners.admin, hub, waiting.admin)]
        self._notices.send("READY=1", "STATUS=waiting to be provisioned")
        try:
            await self._wait_for(None, waiting.done)
            await waiting.admin.finish(5.0)
            await _drain(hub)
        finally:
            for acceptor in acceptors:
                await acceptor.stop()
            audit.close()
            hub.release()
            hub.close_all()
        return EXIT_OK if self._stop.is_set() else None

    async def _cannot_start(self, code: ErrorCode, why: str, status: int) -> int | None:
        """With the service manager's sockets, answers every request with an error and tries again; else gives up."""
        if not self._inherited or self._listeners is None:
            return status
        text = f"the agent is running but cannot work: {why}; an administrator finds the reason in its journal"
        self._notices.send("READY=1", f"STATUS={why}; retrying every {RETRY_S:g} s")
        hub = Hub(time.monotonic, lambda: False)
        service = MinimalService(code, text)
        acceptors = [Acceptor(sock, hub, service) for sock in (self._listeners.pos, self._listeners.admin)]
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

    async def _serve(self, daemon: Daemon, hub: Hub, cage: Cage) -> None:
        listeners = self._listeners
        if listeners is None:
            raise RuntimeError("no sockets to serve")
        await daemon.start()
        # What is there now stays to the end; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        acceptors = [Acceptor(listeners.pos, hub, daemon.pos), Acceptor(listeners.admin, hub, daemon.admin)]
        self._notices.send("READY=1", f"STATUS=validating licenses for {daemon.agent_id}")
        log.info("license-agent %s is ready as %s", VERSION, daemon.agent_id)
        loop = asyncio.get_running_loop()
        ticker = loop.create_task(_tick(daemon.tick))
        courier = loop.create_task(_tick(daemon.keep_in_touch))
        reloader = loop.create_task(self._reload_on_request(daemon, cage))
        await self._stop.wait()
        self._notices.send("STOPPING=1")
        for acceptor in acceptors:
            await acceptor.stop()
        await _drain(hub)
        for task in (ticker, courier, reloader):
            task.cancel()
        await asyncio.gather(courier, return_exceptions=True)
        await daemon.finish()
        await asyncio.sleep(0)
        listeners.close()
        log.info("license-agent has stopped")

    async def _reload_on_request(self, daemon: Daemon, cage: Cage) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._notices.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                config, unreachable = cage.narrowed(cage.identified(self._load_config()))
                later = [*daemon.reload(config), *unreachable]
            except CageOutgrown as error:
                log.error("the configuration was not reloaded; the old one stays in force: %s", error)
                daemon.reload_failed([str(error)])
            except ConfigError as error:
                for problem in error.problems:
                    log.error("%s", problem)
                log.error("the configuration was not reloaded; the old one stays in force")
                daemon.reload_failed(error.problems)
            else:
                log.info("the configuration was reloaded%s", f"; needs a restart: {', '.join(later)}" if later else "")
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


# Commands


def _run(options: argparse.Namespace) -> int:
    journal.set_up()
    try:
        forbid_exec()
    except ConfineError as error:
        log.error("%s", error)
        return EXIT_UNAVAILABLE
    forbid_dumps()
    os.umask(0o077)
    # What works in another thread (archives, checks of the log) gives the interpreter back to verdicts ten times as soon.
    sys.setswitchinterval(0.0005)
    try:
        inherited = inherited_sockets()
    except ListenError as error:
        log.error("%s", error)
        return EXIT_UNAVAILABLE

    async def main() -> int:
        return await Runner(options.config, inherited).run()

    return uvloop.run(main())


def entry() -> None:
    """The console script."""
    options = parser().parse_args()
    run = COMMANDS.get(options.command, _run)
    try:
        status = run(options)
    except ConfigError as error:
        sys.stderr.write("".join(f"license-agent: {problem}\n" for problem in error.problems))
        status = EXIT_CONFIG
    except (HwsecError, StartError) as error:
        sys.stderr.write(f"license-agent: {error}\n")
        status = EXIT_UNAVAILABLE
    except OSError as error:
        sys.stderr.write(f"license-agent: {error.filename}: {error.strerror}\n")
        status = EXIT_FAILED
    # A hung TPM call keeps its thread; the process must be able to end all the same.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
