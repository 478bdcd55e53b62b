"""Takes server-signed times into the clock and the store: with replies, with deliveries, and in answer to a challenge."""

import os
from dataclasses import replace
from typing import Any

from agentd.audit.core import Core
from agentd.base.errors import Refused
from agentd.base.hardware import COMMIT_DEADLINE_S, read_counters
from agentd.base.timeanchor import TOLERANCE_S, Reading, TimeAnchor
from contracts.servertime import verify_server_time
from hwsec.bootclock import read_boot_clock

from .store import Store

CHALLENGE_S = 24 * 3600
"""An administrator may carry a challenge to the server and the answer back by hand."""
FRESH_S = 60.0
"""An answer that came within this time says what time it is; a later one only says what time it has been."""


class TrustedTime:
    """The agent's server-signed time.

    Args:
        store: keeps it.
    """

    def __init__(self, core: Core, store: Store) -> None:
        self._core = core
        self._store = store
        self._challenge: tuple[str, float] | None = None

    def moves_on(self, signed: int) -> bool:
        """Whether a server-signed time is later than all that the clock knows."""
        return signed > self._core.clock.floor or self._core.clock.anchor is None

    async def anchor_at(self, signed: int, *, fresh: bool) -> TimeAnchor:
        """A server-signed time with what the counters show now. Raises as `Hardware.run`."""
        boot, tpm = await self._core.hardware.run(lambda connection: read_counters(connection.backend), COMMIT_DEADLINE_S)
        return TimeAnchor(signed, fresh, boot, tpm)

    def agrees(self, signed: int) -> bool:
        """Whether the machine's own clock agrees with a server-signed time."""
        return abs(self._core.clock.wall() - signed) <= TOLERANCE_S

    def go_by(self, anchor: TimeAnchor) -> None:
        """Sets the clock by an anchor of this run of the machine.

        The counters of the anchor are of this boot, so CLOCK_BOOTTIME alone tells what has passed since; the TPM is not asked.
        """
        boot = read_boot_clock()
        self._core.clock.set_anchor(anchor, Reading(boot.milliseconds, boot.reset_count), None)

    async def hear(self, signed: int, *, fresh: bool) -> None:
        """Goes by a time that the server has signed just now; the next commit stores it.

        Raises:
            HwsecError: the hardware does not tell its clock.
        """
        async with self._core.hardware.turn:
            anchor = await self.anchor_at(signed, fresh=fresh)
            self._store.note_time(anchor)
            self.go_by(anchor)

    def challenge(self) -> str:
        """A new challenge for the server's time; an earlier one can no longer be answered."""
        challenge = os.urandom(16).hex()
        self._challenge = (challenge, self._core.clock.monotonic())
        return challenge

    async def reset(self, statement: str, actor: dict[str, Any]) -> int:
        """Goes by the server's time in answer to the last challenge, even if it is before the floor; returns it.

        Raises:
            Refused: no challenge is outstanding, or it is too old.
            MalformedToken, BadSignature, WrongAudience: the statement is not acceptable.
            HwsecError, AuditUnavailable: nothing has changed.
        """
        core, store = self._core, self._store
        async with core.hardware.turn:
            if self._challenge is None:
                raise Refused("no challenge is outstanding: 'license-agent-cli clock challenge' makes one")
            challenge, made = self._challenge
            age = core.clock.monotonic() - made
            if age > CHALLENGE_S:
                raise Refused(f"the challenge is more than {CHALLENGE_S // 3600} hours old: make a new one")
            signed = verify_server_time(statement, core.agent_id, challenge, store.trust)
            anchor = await self.anchor_at(signed, fresh=age <= FRESH_S)
            await core.audit.record_durably(
                "clock.reset", "begun", actor=actor, signed=signed, floor=core.clock.floor, wall=int(core.clock.wall())
            )
            record = replace(store.record, time=anchor)
            await store.commit(store.ring.contents(record.sections()), record)
            self._challenge = None
            self.go_by(anchor)
            core.audit.record("clock.reset", "ok", actor=actor, signed=signed)
            return signed
