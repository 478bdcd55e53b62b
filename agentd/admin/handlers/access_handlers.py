"""Handles requests about administrators themselves: how they are authenticated, and whose certificates count."""

from typing import Any

from agentd.admin.access import Access
from agentd.admin.service import Handler
from agentd.audit.log import actor
from agentd.base.caller import Caller
from agentd.base.errors import Refused
from ipc.messages import AdminAccess, AdminAccessEnd, AdminRevoke, BreakGlassBegin, BreakGlassEnd, CertificateCheck
from ipc.peer import Peer


class AccessHandlers:
    """Handles requests about administrators.

    Args:
        access: decides who may ask for what.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {
            AdminAccess: self._show,
            CertificateCheck: self._check,
            AdminRevoke: self._revoke,
            AdminAccessEnd: self._end,
            BreakGlassBegin: self._begin_break_glass,
            BreakGlassEnd: self._end_break_glass,
        }

    async def _show(self, _request: AdminAccess, _peer: Peer) -> dict[str, Any]:
        return self._access.details()

    async def _check(self, request: CertificateCheck, _peer: Peer) -> dict[str, Any]:
        return {"revoked": self._access.revoked_among(request.digests)}

    async def _revoke(self, request: AdminRevoke, peer: Peer) -> dict[str, Any]:
        return {"revoked": await self._access.revoke(request.digests, actor(peer))}

    async def _end(self, _request: AdminAccessEnd, peer: Peer) -> dict[str, Any]:
        return {"mode": (await self._access.end(peer, actor(peer))).value}

    async def _begin_break_glass(self, request: BreakGlassBegin, peer: Peer) -> dict[str, Any]:
        if not isinstance(peer, Caller) or not peer.break_glass:
            raise Refused("only a break-glass certificate begins so: 'license-agent admin-ca break-glass' issues one")
        return {"seconds": await self._access.begin_break_glass(peer, request.why, actor(peer))}

    async def _end_break_glass(self, _request: BreakGlassEnd, peer: Peer) -> dict[str, Any]:
        return {"ended": await self._access.end_break_glass(actor(peer))}
