"""Handles requests about administrators themselves: how they are authenticated, and whose certificates count."""

from typing import Any

from agentd.audit.log import actor
from ipc.messages import AdminAccess, AdminAccessEnd, AdminRevoke
from ipc.peer import Peer

from .access import Access
from .service import Handler


class AccessHandlers:
    """Handles requests about administrators.

    Args:
        access: decides who may ask for what.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {AdminAccess: self._show, AdminRevoke: self._revoke, AdminAccessEnd: self._end}

    async def _show(self, _request: AdminAccess, _peer: Peer) -> dict[str, Any]:
        return self._access.details()

    async def _revoke(self, request: AdminRevoke, peer: Peer) -> dict[str, Any]:
        return {"revoked": await self._access.revoke(request.digests, actor(peer))}

    async def _end(self, _request: AdminAccessEnd, peer: Peer) -> dict[str, Any]:
        return {"mode": (await self._access.end(peer, actor(peer))).value}
