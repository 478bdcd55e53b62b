"""Seals the heads of the audit log's chains in the hardware, so that a log that was cut or replaced is noticed."""

import base64
import logging
from collections.abc import Collection

from agentd.base.alerts import AUDIT_SEAL
from agentd.base.hardware import COMMIT_DEADLINE_S
from audittrail.chain import CERTIFIED
from hwsec.errors import HwsecError

from .core import Core
from .log import AuditUnavailable

log = logging.getLogger(__name__)

SEAL_MISMATCH = (
    "the audit log does not match its sealed value: records up to a sealed checkpoint are missing, the log was replaced, "
    "or the agent was enrolled again"
)
SEAL_FOREIGN = "the sealed audit value is not what this agent made it: another program extends it"


class Checkpoint:
    """Makes checkpoints, one at a time.

    Args:
        sealed: values that may be sealed now: those around the log's last checkpoint.

    Attributes:
        sealed_head: number and digest (hex) of the last checkpoint of this run; the agent tells the server. None before it.
        last_seq: number of the last record that a checkpoint of this run covers; 0 before it.
        made_at: when that checkpoint was made, seconds since 1970 UTC by the machine's clock; 0 before it.
    """

    def __init__(self, core: Core, sealed: Collection[bytes]) -> None:
        self._core = core
        self._sealed = sealed
        self.sealed_head: tuple[int, str] | None = None
        self.last_seq = 0
        self.made_at = 0.0

    async def make(self) -> None:
        """Seals the heads now.

        Raises:
            AuditUnavailable: the log cannot be written.
            HwsecError: the hardware does not take it; the next checkpoint will.
        """
        audit, hardware = self._core.audit, self._core.hardware
        async with hardware.turn:
            before = await hardware.run(lambda connection: connection.backend.read_audit(), COMMIT_DEADLINE_S)
            reseal = before not in self._sealed
            if reseal:
                audit.raise_alert(AUDIT_SEAL, SEAL_MISMATCH, "mismatch", text=SEAL_MISMATCH, found=before.hex())
            digest, value = await audit.checkpoint(before, reseal=reseal)
            self._sealed = (before, value)
            found = await hardware.run(lambda connection: connection.backend.extend_audit(digest), COMMIT_DEADLINE_S)
            if found != value:
                # The journal says so now; the next checkpoint finds it, records the alert and seals again.
                log.critical("ALERT %s", SEAL_FOREIGN)
                return
            self.sealed_head = (audit.seq, digest.hex())
            certified = await hardware.run(lambda connection: connection.backend.certify_audit(digest), COMMIT_DEADLINE_S)
            audit.record(
                CERTIFIED,
                "ok",
                attested=base64.b64encode(certified.attested).decode("ascii"),
                signature=base64.b64encode(certified.signature).decode("ascii"),
            )
            audit.flush()

    async def make_if_needed(self) -> None:
        """Seals the heads if records have come since the last checkpoint, which is a record itself. Logs what fails."""
        audit = self._core.audit
        if audit.seq <= self.last_seq and not audit.pending:
            return
        try:
            await self.make()
        except (HwsecError, AuditUnavailable) as error:
            log.error("the audit log's head could not be sealed: %s", error)
        else:
            self.last_seq = audit.seq
            self.made_at = self._core.clock.wall()

    @property
    def unsealed(self) -> int:
        """Records since the last checkpoint of this run, or since its start."""
        return self._core.audit.seq - self.last_seq if self.last_seq else self._core.audit.records

    async def sealed_value(self) -> bytes:
        """The value that is sealed now, 32 bytes. Raises HwsecError."""
        hardware = self._core.hardware
        async with hardware.turn:
            return await hardware.run(lambda connection: connection.backend.read_audit(), COMMIT_DEADLINE_S)
