"""Runs a provisioned agent: its start, the housekeeping table, reloads, its end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from common.files import os_problem
from ipc.messages import Reload
from ipc.peer import Peer

from . import VERSION
from .admin.service import AdminService, Handler
from .base.config.config import Config
from .base.config.live import Effective
from .base.configstatus import Read
from .base.confinement import NOT_CONFINED, ConfinementStatus
from .base.errors import StopError
from .ota.settings import settings_of
from .wiring import Agent, limits_of

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 3600.0
USAGE_EVERY_S = 30.0
"""How often usage counts are brought to the disk: a power cut loses what was counted since."""
NV_RESERVE = 6
"""NV writes that regular checkpoints leave for administrators and rotations; a commit takes two."""
LAST_WORK_S = 5.0
"""How long a stop waits for the hardware, and each time for the disk."""
UPDATES_EVERY_S = 5.0
LATE_S = 60.0
"""A lane of the housekeeping that takes longer is logged."""

_RESTART_ONLY = ("paths", "tpm", "server")

Work = Callable[[], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Chore:
    """One row of the housekeeping table.

    Attributes:
        name: for the journal, if it fails.
        every: seconds between two runs; 0 for every tick, which comes each second.
        first: seconds from the start to the first run.
        work: does it.
        lane: what the work may wait for; work without a lane waits for nothing. Chores of one lane run one after another, those
            of different lanes side by side, so that a disk or a TPM that does not answer holds up nothing else.
    """

    name: str
    every: float
    first: float
    work: Work
    lane: str = ""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """How a reload ended.

    Attributes:
        problems: why the file was refused; empty if it was loaded.
        needs_restart: what was loaded and takes effect at the next start.
    """

    problems: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


class Housekeeping:
    """Runs chores when they are due. One that fails is logged, and none keeps another from running, except in its own lane.

    Args:
        monotonic: seconds.
        chores: run in this order.
    """

    def __init__(self, monotonic: Callable[[], float], chores: tuple[Chore, ...]) -> None:
        self._monotonic = monotonic
        self._chores = chores
        self._next: dict[str, float] = {}
        self._paces: dict[str, float] = {}
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._since: dict[str, float] = {}

    def pace(self, name: str, every: float) -> None:
        """Runs a chore so often from its next run on; seconds."""
        self._paces[name] = every

    def tick(self) -> None:
        """Begins what is due; called every second."""
        now = self._monotonic()
        due = [chore for chore in self._chores if now >= self._next.setdefault(chore.name, now + chore.first)]
        lanes: dict[str, list[Chore]] = {}
        for chore in due:
            if not chore.lane:
                self._next[chore.name] = now + self._paces.get(chore.name, chore.every)
                try:
                    chore.work()
                except Exception:  # a chore that fails once must not end the housekeeping
                    log.exception("housekeeping failed: %s", chore.name)
            elif chore.lane not in self._lanes or self._lanes[chore.lane].done():
                self._next[chore.name] = now + self._paces.get(chore.name, chore.every)
                lanes.setdefault(chore.lane, []).append(chore)
            elif now - self._since[chore.lane] > LATE_S:
                self._since[chore.lane] = now
                log.error("housekeeping waits for the %s, which has not answered for %g s", chore.lane, LATE_S)
        for lane, chores in lanes.items():
            self._since[lane] = now
            self._lanes[lane] = asyncio.get_running_loop().create_task(self._run(chores))

    async def _run(self, chores: list[Chore]) -> None:
        for chore in chores:
            try:
                pending = chore.work()
                if pending is not None:
                    await pending
            except Exception:  # as above, for work that waits
                log.exception("housekeeping failed: %s", chore.name)

    async def stop(self) -> None:
        """Stops what is under way; a thread that waits for a disk is left behind."""
        for task in self._lanes.values():
            task.cancel()
        await asyncio.gather(*self._lanes.values(), return_exceptions=True)


class Daemon:
    """One run of the agent.

    Args:
        agent: from `wiring`.
        confinement: of this process.
        read_config: reads the configuration file again; None in tests that have none.
    """

    def __init__(self, agent: Agent, confinement: ConfinementStatus = NOT_CONFINED, read_config: Read | None = None) -> None:
        self.agent = agent
        self._made = agent.assembled
        self._core = agent.assembled.core
        self._config = agent.assembled.config
        self._reporter = agent.reporter
        self.pos = agent.pos
        core = self._core
        self._file = agent.parts.config
        self._file.read = read_config
        self._access = agent.access
        handlers: dict[type, Handler] = {**agent.handlers(confinement), Reload: self._reload_for_administrator}
        management, monotonic = self._config.management, core.clock.monotonic
        self.admin = AdminService(management, core.audit, core.counters, monotonic, handlers, self._access)
        self._housekeeping = Housekeeping(core.clock.monotonic, self._chores())
        self._checkpoint_at = core.clock.monotonic() + CHECKPOINT_EVERY_S
        self._fleet = agent.parts.fleet
        self._effective = Effective(self._config) if self._fleet is None else self._fleet.effective
        self._housekeeping.pace("views", self._effective.config.agent.metrics_interval)
        if self._fleet is not None and self._fleet.document is not None:
            self._go_by(self._effective)

    def _chores(self) -> tuple[Chore, ...]:
        agent, core, made = self.agent, self._core, self._made
        return (
            Chore("timeouts", 0, 0, made.hub.sweep),
            Chore("sleep", 0, 0, core.clock.notice_sleep),
            Chore("latest time", 0, 0, self._note_latest),
            Chore("audit file", 0, 0, core.audit.look_after_file),
            Chore("states", 0, 0, self._reporter.note),
            Chore("fleet settings", 0, 0, self._look_at_fleet),
            Chore("alerts", 0, 0, agent.webhook.look),
            Chore("alerts kept", 0, 0, agent.webhook.keep, "disk of the alerts that wait"),
            Chore("alerts sent", 0, 0, agent.webhook.deliver, "webhook"),
            Chore("updates", UPDATES_EVERY_S, UPDATES_EVERY_S, self._tend_updates),
            Chore("minute", 60, 60, self._every_minute),
            Chore("views", 15, 15, self.agent.publisher.write, "disk of metrics and state"),
            Chore("hardware", 30, 30, self._reporter.watch_hardware, "hardware"),
            Chore("admin CA", 60, 0, self._look_at_admin_ca, "hardware"),
            Chore("backups", 60, 60, self._look_at_backups, "disk of metrics and state"),
            Chore("usage", USAGE_EVERY_S, USAGE_EVERY_S, self._sync_usage, "disk of the usage counts"),
            Chore("checkpoint", 0, 0, self._checkpoint, "hardware, or the audit log's disk"),
            # Archives soon after the start too: a till that is switched off every few minutes has archives to make as well.
            Chore("archive", 600, 60, lambda: made.keeper.work(made.checkpoint.last_seq), "disk of the archives"),
            Chore("verify", 86_400, 30, made.keeper.check_all, "disk of the archives"),
        )

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        return self._core.agent_id

    # Start and end

    async def start(self) -> None:
        """Logs the start and what it found, and writes the first views."""
        audit, found, store = self._core.audit, self._made.found, self._made.store
        status = await store.refresh_status()
        audit.record("agent.started", "ok", version=VERSION, backend=status.name, generation=found.loaded.generation)
        audit.recover_counts()
        for repair in found.loaded.repairs:
            log.warning("%s", repair)
            audit.record("store.repaired", "ok", text=repair)
        if found.audit_end.torn:
            log.warning("the audit log ended in an unfinished line; it was set aside in audit.log.torn")
            audit.record("audit.torn_line", "set_aside", bytes=found.audit_end.torn)
        if not found.inventory_whole:
            log.warning("licenses.json could not be read; the license inventory starts empty")
            audit.record("licenses.corrupt", "reset")
        if found.state_corrupt:
            log.warning("state.json was corrupt; restored from %s and the sealed store", found.kept_from.value)
            audit.record("state.restored", "ok", origin=found.kept_from.name.lower())
        if status.hierarchies_open:
            log.warning(
                "NOTICE hierarchies of the TPM have an empty auth value (%s): any program that may open the TPM can clear it, "
                "but cannot read from it",
                ", ".join(status.hierarchies_open),
            )
        if status.name != "tpm":
            log.warning("NOTICE the backend is '%s': %s", status.name, status.detail)
        await self._made.checkpoint.make_if_needed()
        self._reporter.note()
        await self.agent.publisher.write()

    async def finish(self) -> None:
        """Answers what is in flight, then writes everything that is still only in memory."""
        await self._housekeeping.stop()
        if self.agent.updates is not None:
            await self.agent.updates.runner.stop()
        await self.admin.finish(5.0)
        audit, hub = self._core.audit, self._made.hub
        audit.emit_counts()
        audit.record("agent.stopped", "ok")
        await _within(self._made.checkpoint.make_if_needed(), "the audit log's last records are not sealed")
        try:
            await _within(self._sync_usage(), "usage counts of the last seconds may be lost at a power cut")
        except OSError as error:
            log.error("usage counts of the last seconds may be lost at a power cut: %s", os_problem(error))
        self.agent.webhook.look()
        await _within(self.agent.webhook.keep(), "alerts of the last seconds may not reach the webhook")
        await _within(self.agent.publisher.write_last(), "metrics and state.json are those of before the stop")
        hub.end_tick()
        hub.close_all()
        try:
            await _within(audit.finish(), "the audit log's last records may be lost at a power cut")
        except OSError as error:
            raise StopError(
                f"{os_problem(error)}; the last records of the audit log may be lost at a power cut: look for errors of its "
                "disk with 'dmesg', and run 'license-agent-cli audit verify' after the next start"
            ) from None
        finally:
            self._core.vault.close()

    # Housekeeping

    async def tick(self) -> None:
        """Runs the housekeeping; called every second."""
        self._housekeeping.tick()

    async def keep_in_touch(self) -> None:
        """Contacts the server if it is time; called every second and apart from `tick`, since it may take long."""
        cycle = self.agent.parts.cycle
        if cycle is not None and await cycle.tick():
            await self._reporter.heard_from_server()

    def _note_latest(self) -> None:
        # Sleep, drift and a clock that somebody sets change by how much the unconfirmed time of the server is ahead.
        clock = self._core.clock
        self._made.validator.ahead = clock.latest() - clock.now()

    async def _look_at_backups(self) -> None:
        if self.agent.parts.backups is not None:
            await self.agent.parts.backups.look()

    def _tend_updates(self) -> None:
        if self.agent.updates is not None:
            self.agent.updates.runner.tick()

    def _every_minute(self) -> None:
        audit = self._core.audit
        audit.emit_counts()
        audit.begin_segment_of_the_day()
        audit.tidy()
        self.pos.tidy()
        self.admin.tidy()
        self._made.validator.inventory.forget_old(self._core.clock.now())

    async def _look_at_admin_ca(self) -> None:
        self._access.look()
        await self._access.settle()

    async def _sync_usage(self) -> None:
        if self._made.usage is not None:
            await self._made.usage.sync()

    async def _checkpoint(self) -> None:
        """Seals the log every hour, and as soon as a closed segment waits to be archived."""
        now = self._core.clock.monotonic()
        if now >= self._checkpoint_at:
            self._checkpoint_at = now + CHECKPOINT_EVERY_S
        elif not self._core.audit.checkpoint_due:
            return
        left = self._made.store.status.nv_budget_left
        if left is None or left > NV_RESERVE:
            await self._made.checkpoint.make_if_needed()

    # Configuration

    def reload(self) -> Reloaded:
        """Reads the file and applies what may change while running. A file that is refused changes nothing."""
        found = self._file.on_disk()
        if found.config is None:
            self._refuse(found.problems)
            return Reloaded(problems=found.problems)
        later = [*self._apply(found.config), *found.unreachable]
        log.info("the configuration was reloaded%s", f"; needs a restart: {', '.join(later)}" if later else "")
        return Reloaded(needs_restart=tuple(later))

    async def _reload_for_administrator(self, _request: Reload, _peer: Peer) -> dict[str, Any]:
        done = self.reload()
        await self._access.settle()
        return {"problems": list(done.problems), "needs_restart": list(done.needs_restart)}

    def _apply(self, config: Config) -> list[str]:
        for warning in config.warnings:
            log.warning("%s", warning)
        old, made, file = self._config, self._made, config
        later = [name for name in _RESTART_ONLY if getattr(old, name) != getattr(config, name)]
        if old.agent.id != config.agent.id:
            later.append("agent.id")
        if old.updates.enabled != config.updates.enabled:
            later.append("updates.enabled")
        # Until the restart the old sections count: this process is confined to their files.
        config = replace(config, **{name: getattr(old, name) for name in _RESTART_ONLY})
        self._config = config
        self._file.loaded(file, config, later)
        made.store.ring.limits = limits_of(config)
        made.validator.refuse_stale_revocations(config.agent.stale_revocations == "refuse")
        self.agent.parts.mode.reconfigure(config.agent)
        self.pos.reconfigure(config.pos)
        self.admin.reconfigure(config.management)
        made.hub.recheck()
        self._core.audit.reconfigure(config.audit)
        made.keeper.limits = config.audit
        self._go_by(Effective(config) if self._fleet is None else self._fleet.over(config))
        self._core.audit.record("config.reloaded", "ok", needs_restart=later)
        return later

    def _look_at_fleet(self) -> None:
        if self._fleet is not None and self._fleet.effective is not self._effective:
            self._go_by(self._fleet.effective)

    def _go_by(self, found: Effective) -> None:
        """Applies what a fleet may set: all that has an effect without a restart."""
        self._effective, config = found, found.config
        self._file.go_by_fleet(None if self._fleet is None else self._fleet.origin, found)
        self.agent.webhook.reconfigure(config.alerts)
        if self.agent.updates is not None:
            self.agent.updates.runner.reconfigure(settings_of(config.updates))
        self._housekeeping.pace("views", config.agent.metrics_interval)

    def _refuse(self, problems: tuple[str, ...]) -> None:
        for problem in problems:
            log.error("%s", problem)
        log.error("the configuration was not reloaded; the old one stays in force")
        self._file.refused(problems)
        self._core.audit.record("config.reloaded", "refused", problems=[problem[:300] for problem in problems[:10]])


async def _within(work: Awaitable[None], otherwise: str) -> None:
    """Does the last work of a kind, unless the hardware or the disk does not answer."""
    try:
        async with asyncio.timeout(LAST_WORK_S):
            await work
    except TimeoutError:
        log.error("%s: no answer within %g s", otherwise, LAST_WORK_S)
