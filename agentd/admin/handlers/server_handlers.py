"""Handles requests that need the license server: rotate, contact, renew, degraded mode."""

from typing import Any

from agentd.admin.service import Handler
from agentd.audit.log import actor
from agentd.base.errors import Refused
from agentd.sync.cycle import ContactCycle
from agentd.telemetry.parts import AgentParts
from agentd.telemetry.reporter import Reporter
from agentd.telemetry.views import server_view
from contracts.exchange import Cause
from ipc.messages import CertificateRenew, Contact, DegradedSwitch, Provision, Rotate
from ipc.peer import Peer


class ServerHandlers:
    """Handles requests that need the license server.

    Args:
        parts: of the agent; without a contact cycle every request here is refused.
        reporter: called after each change.
    """

    def __init__(self, parts: AgentParts, reporter: Reporter) -> None:
        self._parts = parts
        self._core = parts.core
        self._reporter = reporter

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {
            Provision: self._provision,
            Rotate: self._rotate,
            Contact: self._contact,
            CertificateRenew: self._renew,
            DegradedSwitch: self._switch,
        }

    def _cycle(self) -> ContactCycle:
        cycle = self._parts.cycle
        if cycle is None:
            raise Refused("this agent has no server: it was not provisioned; secrets are carried to it by hand")
        return cycle

    async def _provision(self, _request: Provision, _peer: Peer) -> dict[str, Any]:
        raise Refused("this device is an agent already; 'license-agent recover reinitialize' ends that")

    async def _rotate(self, _request: Rotate, peer: Peer) -> dict[str, Any]:
        cycle = self._cycle()
        before = cycle.newest
        await self._core.audit.record_durably("rotation.forced", "begun", actor=actor(peer), secret_version=before)
        done = await cycle.contact(Cause.FORCED)
        await self._reporter.heard_from_server()
        return {
            "secret_version": cycle.newest,
            "before": done.before,
            "finished": done.finished,
            "generation": self._parts.store.generation,
        }

    async def _contact(self, _request: Contact, peer: Peer) -> dict[str, Any]:
        cycle = self._cycle()
        await self._core.audit.record_durably("server.contact", "begun", actor=actor(peer))
        await cycle.contact()
        await self._reporter.heard_from_server()
        return server_view(cycle, self._core.clock.now())

    async def _renew(self, _request: CertificateRenew, peer: Peer) -> dict[str, Any]:
        cycle = self._cycle()
        await self._core.audit.record_durably("tls.renewal", "wanted", actor=actor(peer))
        await cycle.contact(renew=True)
        await self._reporter.heard_from_server()
        # The next contact is the first with the new certificate.
        await cycle.contact()
        await self._reporter.heard_from_server()
        return {"certificate_ends": int(cycle.certificate_ends)}

    async def _switch(self, request: DegradedSwitch, peer: Peer) -> dict[str, Any]:
        self._cycle()
        mode = self._parts.mode
        if request.on and not mode.switch_allowed:
            raise Refused('the configuration forbids it: it needs degraded_switch = "allowed" in [agent]')
        await self._core.audit.record_durably("degraded.switched", "on" if request.on else "off", actor=actor(peer))
        mode.hold(request.on)
        await self._reporter.after_change()
        return {"mode": mode.state.mode.value, "held": mode.state.held}
