"""Handles requests that read and verify the audit log, and the one for the keys that verify it elsewhere."""

import asyncio
from typing import Any

from agentd.admin.service import REPLY_ROOM, Handler
from agentd.audit.checkpoint import Checkpoint
from agentd.audit.file import tail_lines
from agentd.audit.keeper import AuditKeeper
from agentd.audit.log import AuditLog
from audittrail.report import INCOMPLETE, Gap
from audittrail.rotated import hint
from hwsec.errors import HwsecError
from ipc.messages import AuditExport, AuditTail, AuditVerify, PublicKeys
from ipc.peer import Peer


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
        return {
            AuditTail: self._tail,
            AuditExport: self._export,
            AuditVerify: self._verify,
            PublicKeys: self._public_keys,
        }

    async def _tail(self, request: AuditTail, _peer: Peer) -> dict[str, Any]:
        self._audit.flush()
        lines = await asyncio.to_thread(tail_lines, self._keeper.path, request.after_seq, request.limit, REPLY_ROOM)
        return {"records": [line.decode("utf-8", "replace").rstrip("\n") for line in lines]}

    async def _export(self, request: AuditExport, _peer: Peer) -> dict[str, Any]:
        self._audit.flush()
        lines = await asyncio.to_thread(self._keeper.read, request.after_seq, request.limit, REPLY_ROOM)
        return {"records": [line.decode("utf-8", "replace").rstrip("\n") for line in lines]}

    async def _verify(self, _request: AuditVerify, _peer: Peer) -> dict[str, Any]:
        audit, path = self._audit, self._keeper.path
        audit.flush()
        seq, heads = audit.seq, audit.heads
        # Before the log is read: a checkpoint that is made meanwhile follows this value, and the log tells both.
        sealed = await self._sealed_value()
        report = await self._keeper.verify_in_turn()
        found = report.found
        if found.last_seq < seq or (found.last_seq == seq and found.heads != heads):
            text = f"the log ends with record {found.last_seq}, but the agent has written up to {seq}: its end was cut off"
            report.fail(text + hint(path), path)
        report.checked.append(f"the end: the agent has written up to record {seq}")
        if isinstance(sealed, HwsecError):
            report.gaps.append(Gap(f"the sealed value ({sealed})", "the TPM or software backend, which does not answer"))
        elif not found.values:
            report.gaps.append(Gap("the sealed value: the log has no checkpoint", "the agent's next checkpoint"))
        elif sealed not in found.values:
            report.fail("the log does not match the sealed value: a checkpoint is missing or was replaced", path)
        else:
            report.checked.append(f"the sealed value, of the checkpoint at record {found.last_checkpoint}")
        report.end_open = False
        reply = report.audit_fields()
        if report.outcome == INCOMPLETE:
            # A client of the release before knows `ok` and `problem` only.
            reply["problem"] = f"not everything was checked: {'; '.join(map(str, report.gaps))}"
        return reply

    async def _public_keys(self, _request: PublicKeys, _peer: Peer) -> dict[str, Any]:
        return self._keeper.public_keys()

    async def _sealed_value(self) -> bytes | HwsecError:
        try:
            return await self._checkpoint.sealed_value()
        except HwsecError as error:
            return error
