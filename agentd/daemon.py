"""The running daemon: its handlers for administrators, its housekeeping, its end."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hwsec.errors import HwsecError
from hwsec.files import write_atomic

from . import VERSION
from .admin.handlers import Handlers
from .admin.service import AdminService
from .audit.log import AuditUnavailable
from .base.config import Config
from .base.confinement import NOT_CONFINED, Confinement
from .pos.service import PosService
from .secrets.installer import SecretOps
from .sockets.connection import Hub
from .sync.degraded import Degraded, Mode, Outlook, moved
from .telemetry.alerts import Alerts
from .telemetry.metrics import Gauges, Metrics
from .telemetry.statefile import Kept, StateFile
from .telemetry.views import count_states, rotation_view, state_view
from .wiring import Parts, book_path, limits_of, make_contacts, sealable

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 3600
VIEWS_EVERY_S = 15
REPEATS_EVERY_S = 60
STATUS_EVERY_S = 30
NV_RESERVE = 6
"""NV writes that regular checkpoints leave for others; a commit takes two."""
ARCHIVE_EVERY_S, ARCHIVE_FIRST_S = 600, 60
"""Soon after the start too: a till that is switched off every few minutes has archives to make as well."""
LAST_CHECKPOINT_S = 5.0
"""How long a stop waits for the hardware."""
CHECK_EVERY_S, CHECK_FIRST_S = 86_400, 30
"""The whole audit log is verified soon after the start, and daily."""

ALERT_FAILURES = 3
ALERT_DEGRADED_S = 86_400

_RESTART_ONLY = ("paths", "tpm", "server")


class Daemon:
    """One run of the agent.

    Args:
        parts: from `assembly`.
        hub: of the connections.
        confinement: what the process has put on itself.
    """

    def __init__(self, parts: Parts, hub: Hub, confinement: Confinement = NOT_CONFINED) -> None:
        self.confinement = confinement
        self._parts = parts
        self._hub = hub
        self._config = parts.config
        self.kept = Kept()
        self._states: dict[int, str] = {}
        self._mode = Degraded()
        self._alerts = Alerts(parts.audit)
        self._ticked = parts.clock.monotonic()
        self._clock_was_suspect = False
        self._checkpoint_seq = 0
        self.started = parts.clock.wall()
        self._next: dict[str, float] = {}
        self._views = asyncio.Lock()
        self.ops = SecretOps(
            parts.hardware,
            parts.engine,
            parts.audit,
            parts.clock,
            parts.counters,
            parts.loaded.contents.sections,
            parts.loaded.generation,
            sealable(parts.audit_end),
        )
        self.pos = PosService(parts.config.pos, parts.engine, parts.audit, parts.clock, parts.counters)
        self.contacts = make_contacts(parts, self.ops, self.heard_from_server, self.write_book)
        handlers = Handlers(parts, self.ops, self).table()
        self.admin = AdminService(parts.config.management, parts.audit, parts.counters, parts.clock.monotonic, handlers)
        self._metrics = Metrics(parts.counters, self._gauges)
        self._state_file = StateFile(parts.config.state_file)

    @property
    def agent_id(self) -> str:
        """Who this is."""
        return self._parts.engine.agent_id

    # Start and end

    async def start(self) -> None:
        """Logs the start and what was found, and writes the first views."""
        parts, audit = self._parts, self._parts.audit
        status = await self.ops.refresh_status()
        audit.record("agent.started", "ok", version=VERSION, backend=status.name, generation=parts.loaded.generation)
        audit.recover_repeats()
        for repair in parts.loaded.repairs:
            log.warning("%s", repair)
            audit.record("store.repaired", "ok", text=repair)
        if parts.audit_end.torn:
            log.warning("the audit log ended in an unfinished line; it was set aside in audit.log.torn")
            audit.record("audit.torn_line", "set_aside", bytes=parts.audit_end.torn)
        if not parts.book_whole:
            log.warning("licenses.json could not be read; it starts empty")
            audit.record("licenses.corrupt", "reset")
        self.kept, origin, corrupt = self._state_file.read()
        self._mode = Degraded(since=None, held=self.kept.degraded_held)
        if self.contacts is not None:
            self.contacts.held = self.kept.degraded_held
        if corrupt:
            log.warning("state.json was corrupt; restored from %s and the sealed store", origin.value)
            audit.record("state.restored", "ok", origin=origin.name.lower())
        if status.hierarchies_open:
            log.warning(
                "NOTICE hierarchies of the TPM have an empty auth value (%s): who may open the TPM can clear it, not read it",
                ", ".join(status.hierarchies_open),
            )
        if status.name != "tpm":
            log.warning("NOTICE the backend is '%s': %s", status.name, status.detail)
        await self._checkpoint()
        self._note_states()
        await self.write_views()

    async def finish(self) -> None:
        """Answers what is in flight, then writes everything that is still only in memory."""
        await self.admin.finish(5.0)
        self._parts.audit.emit_repeats()
        self._parts.audit.record("agent.stopped", "ok")
        try:
            async with asyncio.timeout(LAST_CHECKPOINT_S):
                await self._checkpoint()
        except TimeoutError:
            log.error("the audit log's last records are not sealed: the hardware does not answer")
        await self.write_views()
        self._parts.audit.flush()
        self._hub.release()
        self._hub.close_all()
        self._parts.audit.close()
        self._parts.hardware.vault.close()

    # Housekeeping

    async def tick(self) -> None:
        """What is due; called every second."""
        self._hub.sweep()
        self._parts.clock.notice_sleep()
        self._parts.audit.look_after_file()
        self._note_states()
        now = self._parts.clock.monotonic()
        if self._due("repeats", REPEATS_EVERY_S, now):
            self._every_minute()
        if self._due("views", VIEWS_EVERY_S, now):
            await self.write_views()
        if self._due("status", STATUS_EVERY_S, now):
            await self._watch_hardware()
        if self._due("checkpoint", CHECKPOINT_EVERY_S, now) or self._parts.audit.checkpoint_due:
            # The last writes of the TPM's budget are for administrators and rotations.
            left = self.ops.status.nv_budget_left
            if left is None or left > NV_RESERVE:
                await self._checkpoint()
        if self._due("archive", ARCHIVE_EVERY_S, now, first=ARCHIVE_FIRST_S):
            await self._parts.keeper.work(self._checkpoint_seq)
        if self._due("check", CHECK_EVERY_S, now, first=CHECK_FIRST_S):
            await self._parts.keeper.check_all()

    async def keep_in_touch(self) -> None:
        """Contacts the server if it is time; called every second, and apart from `tick`: it may take long."""
        if self.contacts is not None:
            await self.contacts.tick()

    def _due(self, name: str, every: float, now: float, first: float | None = None) -> bool:
        due = self._next.setdefault(name, now + (every if first is None else first))
        if now < due:
            return False
        self._next[name] = now + every
        return True

    def _every_minute(self) -> None:
        self._parts.audit.emit_repeats()
        self._parts.audit.begin_segment_of_the_day()
        self._parts.audit.tidy()
        self.pos.tidy()
        self.admin.tidy()
        self._parts.engine.book.forget_old(self._parts.clock.now())

    async def _watch_hardware(self) -> None:
        was = self.ops.status.state
        status = await self.ops.refresh_status()
        if status.state is was:
            return
        if status.available:
            log.warning("the %s can be used again", status.name)
            self._parts.audit.record("alert.tpm_unavailable", "cleared", was=was.value)
        else:
            log.critical("ALERT the %s cannot be used (%s): %s", status.name, status.state.value, status.detail)
            self._parts.audit.record("alert.tpm_unavailable", "raised", state=status.state.value, text=status.detail[:500])

    async def _checkpoint(self) -> None:
        # A checkpoint is a record itself; with nothing else since, there is nothing to seal.
        if self._parts.audit.seq <= self._checkpoint_seq and not self._parts.audit.pending:
            return
        try:
            await self.ops.checkpoint()
        except (HwsecError, AuditUnavailable) as error:
            log.error("the audit log's head could not be sealed: %s", error)
        else:
            self._checkpoint_seq = self._parts.audit.seq

    def _note_states(self) -> None:
        """Logs what time has changed: secret states, degraded mode, a clock that went back."""
        parts, now = self._parts, self._parts.clock.now()
        for stored in parts.engine.versions:
            state = parts.engine.state_of(stored, now).value
            before = self._states.get(stored.meta.version)
            self._states[stored.meta.version] = state
            if before is not None and before != state:
                parts.audit.record("secret.state_changed", "ok", secret_version=stored.meta.version, was=before, state=state)
        self._note_mode(now)
        suspect = parts.clock.suspect()
        if suspect != self._clock_was_suspect:
            self._clock_was_suspect = suspect
            if suspect:
                log.critical("ALERT the clock stands behind a time that has certainly passed, or ahead of what can have passed")
            parts.audit.record("alert.clock_suspect", "raised" if suspect else "cleared", floor=parts.clock.floor)

    def _note_mode(self, now: int) -> None:
        parts, contacts = self._parts, self.contacts
        was, mono = self._mode, parts.clock.monotonic()
        if was.mode is not Mode.ONLINE:
            parts.counters.degraded_s += mono - self._ticked
        self._ticked = mono
        outlook = Outlook(
            has_server=contacts is not None,
            failures=0 if contacts is None else contacts.record.failures,
            due=parts.engine.overdue(now),
            ended=parts.engine.ended(now),
            held=contacts is not None and contacts.held,
        )
        if was.mode is Mode.ONLINE and self.kept.degraded_since is not None:
            # It was degraded when it was stopped: if it is again, it has been so since then.
            was = replace(was, since=self.kept.degraded_since)
        mode = moved(was, outlook, now, parts.config.agent.degraded_after)
        parts.engine.degraded = mode.mode is not Mode.ONLINE
        if mode.mode is not self._mode.mode:
            self._log_mode(self._mode, mode, now)
        first = self._mode.mode is Mode.ONLINE and mode.mode is Mode.ONLINE
        self._mode = mode
        since = self.kept.degraded_since if first and not self._settled(outlook) else mode.since
        self.kept = replace(self.kept, degraded_since=since, degraded_held=mode.held)
        self._alert(mode, now)

    def _settled(self, outlook: Outlook) -> bool:
        """Whether it is known how the server is: before the first contact after a start it is not."""
        return self.contacts is None or not outlook.due or self.contacts.record.last is not None

    def _log_mode(self, was: Degraded, mode: Degraded, now: int) -> None:
        name, since = mode.mode, mode.since or was.since
        spent = None if since is None or name is Mode.DEGRADED else now - since
        event = {Mode.ONLINE: "degraded.left", Mode.DEGRADED: "degraded.entered", Mode.EXPIRED: "degraded.expired"}[name]
        text = {
            Mode.ONLINE: "left",
            Mode.DEGRADED: "entered: a new secret is overdue, or an administrator wants it so",
            Mode.EXPIRED: "has come to its end: grace is over, licenses are refused",
        }[name]
        log.warning("degraded mode %s", text)
        self._parts.audit.record(event, "ok", seconds=spent, held=mode.held)

    def _alert(self, mode: Degraded, now: int) -> None:
        record = None if self.contacts is None else self.contacts.record
        failing = record is not None and record.failures > ALERT_FAILURES and self._parts.engine.overdue(now)
        self._alerts.set(
            "rotation_failing",
            failing,
            f"more than {ALERT_FAILURES} attempts to get a new secret have failed: {record.problem if record else ''}",
        )
        long = mode.since is not None and now - mode.since > ALERT_DEGRADED_S
        self._alerts.set("degraded_long", long, "the agent has been in degraded mode for more than 24 hours")
        expired = mode.mode is Mode.EXPIRED
        self._alerts.set("secret_expired", expired, "grace of the newest secret has ended and no successor has come")
        stale = self._parts.engine.revocations.stale(now)
        self._alerts.set("revocations_stale", stale, "the revocation list is older than it should be")
        refused = record is not None and record.refused is not None
        words = record.refused if record else ""
        self._alerts.set("server_refuses", refused, f"the license server refuses this agent: {words}")

    async def write_views(self) -> None:
        """Writes metrics, state and license book. A full disk is logged, and stops nothing."""
        parts, now = self._parts, self._parts.clock.now()
        metrics = self._metrics.render()
        state = state_view(parts.engine, self.ops.status, self.ops.generation, self.kept, now)
        path = parts.config.metrics_file
        async with self._views:
            await asyncio.to_thread(_try_to_write, path, lambda: write_atomic(path, metrics, 0o644, durable=False))
            await asyncio.to_thread(_try_to_write, self._state_file.path, lambda: self._state_file.write(state))
        with contextlib.suppress(OSError):
            await self.write_book()

    async def write_book(self) -> None:
        """Writes the license book if it has changed; raises OSError if the disk does not take it, and tries again later."""
        path, book = book_path(self._parts.config), self._parts.engine.book
        async with self._views:
            data = book.take_unsaved()
            if data is None:
                return
            try:
                await asyncio.to_thread(write_atomic, path, data)
            except OSError as error:
                book.dirty = True
                log.error("%s cannot be written: %s", path, error.strerror)
                raise OSError(error.errno, error.strerror, str(path)) from None

    def _gauges(self) -> Gauges:
        parts, now = self._parts, self._parts.clock.now()
        active, grace = count_states(parts.engine, now)
        status = self.ops.status
        return Gauges(
            secrets_active=active,
            secrets_grace=grace,
            degraded=parts.engine.degraded,
            last_contact=self.kept.last_server_contact or 0,
            revocations_stale=parts.engine.revocations.stale(now),
            certificate_ends=0 if self.contacts is None else self.contacts.certificate_ends,
            tpm_available=status.name == "tpm" and status.available,
            last_rotation=rotation_view(parts.engine)["last"] or 0,
            clock_suspect=parts.clock.suspect(),
            connections=len(self._hub.connections),
            audit_records=parts.audit.records,
            audit_counted=parts.audit.counted,
            audit_failing=parts.audit.failing,
            nv_writes=status.nv_writes,
            tpm_state=status.state.value if status.name == "tpm" else None,
            hierarchies_open=len(status.hierarchies_open),
            lockout_counter=status.lockout_counter,
            nv_budget_left=status.nv_budget_left,
        )

    # Configuration

    def reload(self, config: Config) -> list[str]:
        """Takes over what may change while running; returns what needs a restart."""
        old = self._config
        later = [name for name in _RESTART_ONLY if getattr(old, name) != getattr(config, name)]
        if old.agent.id != config.agent.id:
            later.append("agent.id")
        # Until then the old ones hold: this process is confined to their files.
        config = replace(config, **{name: getattr(old, name) for name in _RESTART_ONLY})
        self._config = config
        self._parts.engine.limits = limits_of(config)
        self._parts.engine.refuse_stale_revocations(config.agent.stale_revocations == "refuse")
        self._parts.config = config
        self.pos.reconfigure(config.pos)
        self.admin.reconfigure(config.management)
        self._hub.recheck()
        self._parts.audit.reconfigure(config.audit)
        self._parts.keeper.limits = config.audit
        self._parts.audit.record("config.reloaded", "ok", needs_restart=later)
        return later

    def reload_failed(self, problems: list[str]) -> None:
        """Logs a configuration that was refused; the old one stays."""
        self._parts.audit.record("config.reloaded", "refused", problems=[problem[:300] for problem in problems[:10]])

    # What the handlers ask of the daemon

    @property
    def connections(self) -> int:
        """Open connections on both sockets."""
        return len(self._hub.connections)

    async def heard_from_server(self) -> None:
        """The server's word has reached this machine."""
        self.kept = replace(self.kept, last_server_contact=self._parts.clock.now())
        await self.after_change()

    def hold(self, on: bool) -> None:
        """Leaves the server alone from now on, or not any more."""
        if self.contacts is not None:
            self.contacts.held = on
        self._note_mode(self._parts.clock.now())

    @property
    def mode(self) -> Degraded:
        """Whether the agent works without its server."""
        return self._mode

    def render_metrics(self) -> bytes:
        """The metrics file's text."""
        return self._metrics.render()

    async def after_change(self) -> None:
        """Seals the audit log and writes the views, after an administrator's change."""
        self._note_states()
        await self._checkpoint()
        await self.write_views()


def _try_to_write(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        log.error("%s cannot be written: %s", path, error.strerror)
