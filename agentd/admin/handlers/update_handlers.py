"""Handles requests about updates: where one is, what administrators want of it, and the maintenance register."""

from typing import Any

import msgspec

from agentd.admin.service import Handed, Handler
from agentd.audit.log import actor
from agentd.base.caller import Caller
from agentd.base.errors import Refused
from agentd.ota.acts import UpdateActs
from agentd.ota.register import Register
from agentd.telemetry.parts import AgentParts
from agentd.telemetry.updateview import update_view
from ipc.messages import OtaCheck, OtaHistory, OtaInstall, OtaPackage, OtaPause, OtaRollback, OtaStatus, OtaUnlock
from ipc.peer import Peer


class UpdateHandlers:
    """Handles them.

    Args:
        parts: of the agent.
        updates: what administrators may want, and the register; None where updates are not enabled.
    """

    def __init__(self, parts: AgentParts, updates: tuple[UpdateActs, Register] | None) -> None:
        self._parts = parts
        self._updates = updates

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {
            OtaStatus: self._status,
            OtaCheck: self._check,
            OtaInstall: self._install,
            OtaPackage: self._package,
            OtaRollback: self._roll_back,
            OtaUnlock: self._unlock,
            OtaPause: self._pause,
            OtaHistory: self._history,
        }

    def _require(self) -> tuple[UpdateActs, Register]:
        if self._updates is None:
            config = self._parts.config.config
            why = f"root writes {config.update_trust} first"
            if config.updates.enabled is False:
                why = f"[updates] in {config.source} says enabled = false"
            elif config.updates_enabled:
                why = "the agent has to be started again: systemctl restart license-agent"
            raise Refused(f"updates are not enabled on this machine: {why}")
        return self._updates

    async def _status(self, _request: OtaStatus, _peer: Peer) -> dict[str, Any]:
        runner = self._parts.updates
        if runner is not None:
            await runner.installed()
        return update_view(runner, self._parts.core.clock)

    async def _check(self, request: OtaCheck, peer: Peer) -> dict[str, Any]:
        self._require()
        cycle = self._parts.cycle
        if cycle is None:
            raise Refused("this agent has no license server, which orders updates; 'license-agent-cli provision' gives it one")
        await cycle.contact()
        if self._parts.updates is not None:
            self._parts.updates.look_soon()
        return update_view(self._parts.updates, self._parts.core.clock)

    async def _install(self, request: OtaInstall, peer: Peer) -> dict[str, Any]:
        acts, _ = self._require()
        order = await acts.install(name_of(peer), actor(peer), rehearsal=request.rehearse)
        return {"product": order.product, "version": order.version, "build_id": order.build_id}

    async def _package(self, handed: Handed | OtaPackage, peer: Peer) -> dict[str, Any]:
        acts, _ = self._require()
        if isinstance(handed, OtaPackage):
            raise Refused("no file was handed over: 'license-agent-cli ota install --package FILE' opens one and sends it")
        order = await acts.take(handed.descriptor, handed.request.sha256, name_of(peer), actor(peer))
        return {"product": order.product, "version": order.version, "build_id": order.build_id}

    async def _roll_back(self, request: OtaRollback, peer: Peer) -> dict[str, Any]:
        acts, _ = self._require()
        return {"product": request.product, "version": await acts.roll_back(request.product, name_of(peer), actor(peer))}

    async def _unlock(self, request: OtaUnlock, peer: Peer) -> dict[str, Any]:
        acts, _ = self._require()
        return {"attempts": await acts.unlock(name_of(peer), request.why, actor(peer))}

    async def _pause(self, request: OtaPause, peer: Peer) -> dict[str, Any]:
        acts, _ = self._require()
        await acts.pause(name_of(peer), actor(peer), end=request.end)
        return {"paused": not request.end}

    async def _history(self, request: OtaHistory, _peer: Peer) -> dict[str, Any]:
        _, register = self._require()
        newest_first = register.entries[::-1]
        entries = newest_first[request.skip : request.skip + request.count]
        return {"entries": msgspec.to_builtins(entries), "total": len(newest_first)}


def name_of(peer: Peer) -> str:
    """Who wants it, in the register's words: the name in the certificate, or the user."""
    return peer.name if isinstance(peer, Caller) else f"uid {peer.uid}"
