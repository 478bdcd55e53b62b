"""Runs on a device that is not an agent yet: answers administrators and provisions the device when one of them asks."""

import asyncio
import logging
from functools import partial
from typing import Any

from agentd import VERSION
from agentd.admin.access import Access, read_ca_file
from agentd.admin.handlers.access_handlers import AccessHandlers
from agentd.admin.handlers.system_handlers import SystemHandlers
from agentd.admin.service import AdminService, Handler
from agentd.audit.log import AuditLog, actor
from agentd.base.clock.clock import Clock
from agentd.base.config.config import Config
from agentd.base.configstatus import ConfigStatus, Read
from agentd.base.confinement import ConfinementStatus
from agentd.base.counters import Counters
from agentd.telemetry.configview import config_view
from agentd.telemetry.health import Facts, Finding, findings, health_view, verdict_view
from agentd.telemetry.views import confinement_view
from agentd.uplink.linkclient import LinkClient
from hwsec.owner import HardwareOwner
from ipc.messages import ConfigShow, Health, Provision, Reload, Status
from ipc.peer import Peer

from .provisioning import Provisioner, ProvisioningOrder

log = logging.getLogger(__name__)


class Unprovisioned:
    """Waits to be provisioned.

    Args:
        owner: the hardware's thread.
        confinement: of this process.
        read_config: reads the configuration file again.
        boot_id: the kernel's, 16 bytes.

    Attributes:
        admin: answers on the admin socket.
        done: set once the device is an agent.
        reload: set once an administrator has asked to use the file as it is now.
    """

    def __init__(
        self,
        config: Config,
        owner: HardwareOwner,
        audit: AuditLog,
        clock: Clock,
        confinement: ConfinementStatus,
        read_config: Read,
        boot_id: bytes,
    ) -> None:
        self._config = config
        self._confinement = confinement
        self._audit = audit
        self._lock = asyncio.Lock()
        self._provisioner = Provisioner(config, owner, LinkClient(config.link_socket), clock)
        handlers: dict[type, Handler] = {
            Status: self._status,
            ConfigShow: self._show_config,
            Health: self._verdict,
            Provision: self._provision,
            Reload: self._reload,
        }
        access = Access(
            "", boot_id, partial(read_ca_file, config.admin_ca), config.management.authentication, clock, audit, None
        )
        access.look()
        self._access = access
        handlers |= AccessHandlers(access).table() | SystemHandlers(boot_id, clock.monotonic).table()
        self.admin = AdminService(config.management, audit, Counters(), clock.monotonic, handlers, access)
        self._file = ConfigStatus(config, read_config)
        self.done, self.reload = asyncio.Event(), asyncio.Event()

    async def _reload(self, _request: Reload, _peer: Peer) -> dict[str, Any]:
        found = self._file.on_disk()
        if found.config is not None:
            self.reload.set()
        return {"problems": list(found.problems), "needs_restart": []}

    def _findings(self) -> tuple[Finding, ...]:
        return findings(
            Facts(
                provisioned=False,
                audit_failing=self._audit.failing,
                config_problems=self._file.problems,
                config_unloaded=self._file.unloaded,
                out_of_reach=self._file.out_of_reach,
            )
        )

    async def _verdict(self, _request: Health, _peer: Peer) -> dict[str, Any]:
        return verdict_view(self._findings())

    async def _status(self, _request: Status, _peer: Peer) -> dict[str, Any]:
        await asyncio.to_thread(self._file.look)
        return {
            "health": health_view(self._findings()),
            "agent_id": self._config.agent.id or None,
            "agent_version": VERSION,
            "mode": "unprovisioned",
            "confinement": confinement_view(self._confinement),
            "authentication": self._access.view(),
        }

    async def _show_config(self, _request: ConfigShow, _peer: Peer) -> dict[str, Any]:
        await asyncio.to_thread(self._file.look)
        return config_view(self._file, {})

    async def _provision(self, request: Provision, peer: Peer) -> dict[str, Any]:
        async with self._lock:
            await self._audit.record_durably("agent.provision", "begun", actor=actor(peer), url=request.url, root=request.root)
            try:
                server = await self._provisioner.provision(ProvisioningOrder(request.url, request.root, request.claim))
            except BaseException as error:  # a stop in its middle too: what the log calls begun must have an end there
                fields = {"error": type(error).__name__, "text": str(error)[:300]}
                self._audit.record("agent.provision", "failed", actor=actor(peer), **fields)
                raise
            self._audit.record(
                "agent.provisioned",
                "ok",
                actor=actor(peer),
                agent_id=server.agent_id,
                serial=server.serial,
                attestation=server.attestation,
            )
            log.info("provisioned as %s, serial %d", server.agent_id, server.serial)
            self.done.set()
            return {
                "agent_id": server.agent_id,
                "serial": server.serial,
                "url": server.url,
                "attestation": server.attestation,
            }
