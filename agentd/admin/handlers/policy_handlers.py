"""Handles requests about PCR policies: show, install, bind, revoke."""

from typing import Any

from agentd.admin.service import Handler
from agentd.audit.log import actor
from agentd.secrets.pcr_policy import PcrPolicies
from agentd.secrets.store import Store
from ipc.messages import PolicyBind, PolicyInstall, PolicyRevoke, PolicyShow
from ipc.peer import Peer


class PolicyHandlers:
    """Handles requests about PCR policies.

    Args:
        policies: performs them.
        store: its status shows the binding.
    """

    def __init__(self, policies: PcrPolicies, store: Store) -> None:
        self._policies = policies
        self._store = store

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {
            PolicyShow: self._show,
            PolicyInstall: self._install,
            PolicyBind: self._bind,
            PolicyRevoke: self._revoke,
        }

    async def _show(self, request: PolicyShow, _peer: Peer) -> dict[str, Any]:
        return await self._policies.show(request.pcrs)

    async def _install(self, request: PolicyInstall, peer: Peer) -> dict[str, Any]:
        return {"file": await self._policies.install(request.policy, actor(peer))}

    async def _bind(self, request: PolicyBind, peer: Peer) -> dict[str, Any]:
        await self._policies.bind(request.kind, request.pcrs, request.key, actor(peer))
        await self._store.refresh_status()
        return {"binding": request.kind}

    async def _revoke(self, request: PolicyRevoke, peer: Peer) -> dict[str, Any]:
        await self._policies.revoke(request.number, actor(peer))
        return {"policy_number": request.number}
