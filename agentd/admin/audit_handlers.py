"""Handles requests that read and verify the audit log."""

import asyncio
from typing import Any

from agentd.audit.checkpoint import Checkpoint
from agentd.audit.file import tail_lines
from agentd.audit.keeper import AuditKeeper
from agentd.audit.log import AuditLog
from ipc.messages import AuditExport, AuditTail, AuditVerify
from ipc.peer import Peer

from .service import REPLY_ROOM, Handler


class AuditHandlers:
    """Handles requests about the audit log.

    Args:
        audit: the open log.
        keeper: reads segments and archives.
        checkpoint: knows the sealed value.
    """

    def __init__(self, audit: AuditLog, keeper: AuditKeeper, checkpoint: Checkpoint) -> None:
        self._audit = audit
        self._keeper = keeper
        self._checkpoint = checkpoint

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {AuditTail: self._tail, AuditExport: self._export, AuditVerify: self._verify}

    async def _tail(self, request: AuditTail, _peer: Peer) -> dict[str, Any]:
        self._audit.flush()
        lines = await asyncio.to_thread(tail_lines, self._keeper.path, request.after_seq, request.limit, REPLY_ROOM)
        return {"records": [line.decode("utf-8", "replace").rstrip("\n") for line in lines]}

    async def _export(self, request: AuditExport, _peer: Peer) -> dict[str, Any]:
        self._audit.flush()
        lines = await asyncio.to_thread(self._keeper.read, request.after_seq, request.limit, REPLY_ROOM)
        return {"records": [line.decode("utf-8", "replace").rstrip("\n") for line in lines]}

    async def _verify(self, _request: AuditVerify, _peer: Peer) -> dict[str, Any]:
        audit = self._audit
        audit.flush()
        seq, heads = audit.seq, audit.heads
        found = await asyncio.to_thread(self._keeper.verify)
        problem = None if found.problem is None else str(found.problem)
        if problem is None and (found.last_seq < seq or (found.last_seq == seq and found.heads != heads)):
            problem = f"the log ends with record {found.last_seq}, but the agent has written up to {seq}: its end was cut off"
        if problem is None and found.values:
            sealed = await self._checkpoint.sealed_value()
            if sealed not in found.values:
                problem = "the log does not match the sealed value: a checkpoint is missing or was replaced"
        return {**found.audit_fields(), "ok": problem is None, "problem": problem}
