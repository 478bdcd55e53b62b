"""Writes what shows the agent's state to others: the metrics file, `state.json` and the license inventory."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentd.audit.checkpoint import Checkpoint
from agentd.base.clock.signedtime import Standing
from agentd.base.journal import lines_dropped
from agentd.ota.hindrances import alarming
from common.files import write_atomic

from .alertqueue import AlertQueue
from .metrics import Gauges, Metrics
from .parts import AgentParts
from .statefile import StateFile
from .views import count_states, rotation_view, state_view

log = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""How long a caller waits for the disk."""


class Publisher:
    """Renders and writes the files.

    Args:
        parts: what is shown.
        metrics_file: for node_exporter.
        state_file: `state.json`.
        alerts: what waits for the webhook.
        checkpoint: seals the audit log.
    """

    def __init__(
        self, parts: AgentParts, metrics_file: Path, state_file: StateFile, alerts: AlertQueue, checkpoint: Checkpoint
    ) -> None:
        self._parts = parts
        self._metrics_file = metrics_file
        self._state_file = state_file
        self._alerts = alerts
        self._checkpoint = checkpoint
        self._metrics = Metrics(parts.core.counters, self.gauges)
        self._started_at = parts.core.clock.wall()
        self._up = True
        self._turn = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None

    def render_metrics(self) -> bytes:
        """The text of the metrics file."""
        return self._metrics.render()

    async def write(self) -> None:
        """Writes the files. A full disk is logged and stops nothing; nobody waits long for one that does not answer."""
        async with self._turn:
            if not await self._written():
                return  # the thread of that time still hangs; more of them would be of no use
            self._writing = asyncio.get_running_loop().create_task(self._write(self._metrics.render(), state_view(self._parts)))
            if not await self._written():
                log.error("metrics and state.json cannot be written: the disk has not answered for %g s", PATIENCE_S)

    async def write_last(self) -> None:
        """Writes the files of a stopped agent: from now on the metrics say that it is down."""
        self._up = False
        await self.write()

    async def _written(self) -> bool:
        """Whether the last write has come to its end; waits for it for a while."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=PATIENCE_S)
        return self._writing is None or self._writing.done()

    async def _write(self, metrics: bytes, state: dict[str, Any]) -> None:
        path, file = self._metrics_file, self._state_file
        await asyncio.to_thread(_try_to_write, path, lambda: write_atomic(path, metrics, 0o644, durable=False))
        await asyncio.to_thread(_try_to_write, file.path, lambda: file.write(state))
        with contextlib.suppress(OSError):
            await self._parts.validator.inventory.save()

    def gauges(self) -> Gauges:
        """What is so now."""
        parts, core, ring, status = self._parts, self._parts.core, self._parts.store.ring, self._parts.store.status
        now = core.clock.now()
        active, grace = count_states(ring, now)
        time, updates = parts.store.record.unconfirmed, parts.updates
        backups = None if parts.backups is None else parts.backups.standing(now)
        provisional = time is not None and time.standing is Standing.PROVISIONAL
        return Gauges(
            secrets_active=active,
            secrets_grace=grace,
            degraded=parts.validator.degraded,
            last_contact=parts.mode.kept.last_server_contact or 0,
            revocations_stale=parts.validator.revocations.stale(now),
            certificate_ends=0 if parts.cycle is None else parts.cycle.certificate_ends,
            tpm_available=status.name == "tpm" and status.available,
            last_rotation=rotation_view(ring)["last"] or 0,
            clock_suspect=core.clock.suspect(),
            connections=len(parts.hub.connections),
            audit_records=core.audit.records,
            audit_counted=core.audit.counted,
            audit_failing=core.audit.failing,
            nv_writes=status.nv_writes,
            tpm_state=status.state.value if status.name == "tpm" else None,
            hierarchies_open=len(status.hierarchies_open),
            lockout_counter=status.lockout_counter,
            nv_budget_left=status.nv_budget_left,
            log_lines_dropped=lines_dropped(),
            unfitting_answers=status.unfitting,
            up=self._up,
            started_at=self._started_at,
            written_at=core.clock.wall(),
            server_time_held=time is not None and not provisional,
            server_time_provisional=provisional,
            licenses_held=len(parts.validator.inventory.held()),
            licenses_suspended=len(parts.validator.withheld.suspended),
            usage_unreported=0 if parts.usage is None else parts.usage.behind,
            audit_unsealed=self._checkpoint.unsealed,
            audit_sealed_at=self._checkpoint.made_at,
            tpm_commands=status.commands,
            backup_overdue=None if backups is None else backups.overdue,
            backup_last_good=None if backups is None else backups.record.last_good or 0,
            ota_state=None if updates is None else updates.update.step.value,
            ota_attempts=0 if updates is None else updates.update.attempts,
            ota_paused=updates is not None and bool(updates.paused),
            ota_hindered=updates is not None and alarming(updates.hindrance, int(core.clock.wall())),
            ota_rehearsal_overdue=updates is not None and updates.rehearsal_overdue(),
            ota_installed=0 if updates is None else updates.last_installed(),
            webhook_waiting=len(self._alerts.waiting),
            webhook_dead=len(self._alerts.dead),
            webhook_oldest=self._alerts.waiting[0].at if self._alerts.waiting else 0,
        )


def _try_to_write(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        log.error("%s cannot be written: %s", path, error.strerror)
