"""Handles requests that show the agent's state: status, secrets, metrics."""

import asyncio
from typing import Any

from agentd import VERSION
from agentd.admin.access import Access
from agentd.admin.service import Handler
from agentd.base.confinement import ConfinementStatus
from agentd.licenses.holdings import Holdings
from agentd.telemetry.configview import config_view
from agentd.telemetry.health import findings, health_view, verdict_view
from agentd.telemetry.healthwatch import HealthWatch
from agentd.telemetry.parts import AgentParts
from agentd.telemetry.publisher import Publisher
from agentd.telemetry.updateview import updates_view
from agentd.telemetry.views import (
    alerts_view,
    confinement_view,
    count_states,
    licenses_view,
    rotation_view,
    secrets_view,
    server_time_view,
    server_view,
)
from hwsec.backend import BackendStatus
from hwsec.secretmem import secret_memory_kind
from ipc.messages import ConfigShow, Health, MetricsText, SecretList, Status
from ipc.peer import Peer


class StatusHandlers:
    """Handles requests that change nothing.

    Args:
        parts: what is shown.
        publisher: renders the metrics.
        health: the facts by which the agent's health is judged.
        confinement: of this process.
        access: how administrators are authenticated.
        holdings: the licenses of the machine.
    """

    def __init__(
        self,
        parts: AgentParts,
        publisher: Publisher,
        health: HealthWatch,
        confinement: ConfinementStatus,
        access: Access,
        holdings: Holdings,
    ) -> None:
        self._parts = parts
        self._publisher = publisher
        self._health = health
        self._confinement = confinement
        self._access = access
        self._holdings = holdings
        self._started = parts.core.clock.wall()

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {
            Status: self._status,
            Health: self._verdict,
            SecretList: self._secrets,
            MetricsText: self._metrics,
            ConfigShow: self._config,
        }

    async def _status(self, _request: Status, _peer: Peer) -> dict[str, Any]:
        parts, core, ring = self._parts, self._parts.core, self._parts.store.ring
        status = await parts.store.refresh_status()
        await asyncio.to_thread(parts.config.look)
        if parts.backups is not None:
            await parts.backups.look()
        now = core.clock.now()
        active, grace = count_states(ring, now)
        return {
            "health": health_view(findings(self._health.facts())),
            "agent_id": core.agent_id,
            "agent_version": VERSION,
            "uptime_s": int(core.clock.wall() - self._started),
            "backend": _backend_view(status),
            "secrets": {"active": active, "grace": grace, "total": len(ring.versions), "newest": ring.newest_number},
            "licenses": licenses_view(self._holdings, parts.validator.seats.held(), now),
            "alerts": alerts_view(core.audit.raised_alerts),
            "rotation": rotation_view(ring),
            "degraded": parts.validator.degraded,
            "degraded_since": parts.mode.kept.degraded_since,
            "mode": parts.mode.state.mode.value,
            "server": None if parts.cycle is None else server_view(parts.cycle, now),
            "updates": updates_view(parts.updates),
            "backup": None if parts.backups is None else parts.backups.view(now),
            "clock_suspect": core.clock.suspect(),
            "server_time": server_time_view(parts.store),
            "time": now,
            "validations": core.counters.validations,
            "validations_failed": core.counters.validations_failed,
            "unauthorized": core.counters.unauthorized,
            "connections": len(parts.hub.connections),
            "audit": {"seq": core.audit.seq, "failing": core.audit.failing},
            "store_generation": parts.store.generation,
            "confinement": confinement_view(self._confinement),
            "authentication": self._access.view(),
        }

    async def _verdict(self, _request: Health, _peer: Peer) -> dict[str, Any]:
        return verdict_view(findings(self._health.facts()))

    async def _secrets(self, _request: SecretList, _peer: Peer) -> dict[str, Any]:
        return {"secrets": secrets_view(self._parts.store.ring, self._parts.core.clock.now())}

    async def _config(self, _request: ConfigShow, _peer: Peer) -> dict[str, Any]:
        parts, server = self._parts, self._parts.store.record.server
        await asyncio.to_thread(parts.config.look)
        provisioned: dict[str, Any] = {"agent.id": parts.core.agent_id}
        if server is not None:
            provisioned |= {f"server.{key}": value for key, value in (("url", server.url), ("cert_pin", server.pins))}
        return config_view(parts.config, provisioned)

    async def _metrics(self, _request: MetricsText, _peer: Peer) -> dict[str, Any]:
        return {"text": self._publisher.render_metrics().decode("utf-8")}


def _backend_view(status: BackendStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "available": status.available,
        "detail": status.detail,
        "protects_stolen_disk": status.protects_stolen_disk,
        "state": status.state.value,
        "binding": status.binding,
        "secret_memory": secret_memory_kind(),
        "nv_writes": status.nv_writes,
        "nv_budget_left": status.nv_budget_left,
        "hierarchies_open": list(status.hierarchies_open),
        "lockout_counter": status.lockout_counter,
        "hardware_id": status.hardware_id,
    }
