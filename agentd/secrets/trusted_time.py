"""Takes server-signed times into the clock and the store: with replies, with deliveries, and in answer to a challenge."""

import logging
import os
import time
from dataclasses import dataclass, replace
from typing import Any

from agentd.audit.core import Core
from agentd.base.clock.signedtime import CONFIRM_AFTER_S, UNSETTLED, Standing, Weighed, weigh
from agentd.base.clock.timeanchor import TOLERANCE_S, TimeAnchor, since
from agentd.base.errors import Refused
from agentd.base.hardware import COMMIT_DEADLINE_S, read_counters
from contracts.servertime import verify_server_time

from .record import AgentRecord, UnconfirmedTime
from .store import Store

log = logging.getLogger(__name__)

CHALLENGE_S = 24 * 3600
"""An administrator may carry a challenge to the server and the answer back by hand."""
FRESH_S = 60.0
"""An answer that came within this time says what time it is; a later one only says what time it has been."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A server-signed time and what becomes of it.

    Attributes:
        signed: seconds since 1970 UTC.
        weighed: what becomes of it.
        record: the agent's record with it.
        anchor: what the clock goes by from now on; None if that does not change.
        first: the unconfirmed time before it.
    """

    signed: int
    weighed: Weighed
    record: AgentRecord
    anchor: TimeAnchor | None
    first: UnconfirmedTime | None


_EVENTS = {
    Standing.HELD: "clock.held",
    Standing.PROVISIONAL: "clock.provisional",
    Standing.BEHIND: "clock.behind",
}


def utc(seconds: int) -> str:
    """A time for people."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def describe(standing: Standing, signed: int, clock: int) -> str:
    """What an unconfirmed time means, in words for an administrator."""
    both = f"the license server says {utc(signed)}, this machine says {utc(clock)}"
    if standing is Standing.PROVISIONAL:
        return f"{both} and cannot know better: the server's time is provisional until a later contact confirms it"
    if standing is Standing.BEHIND:
        return f"{both}, and the server's time has certainly passed: it is not used"
    return f"{both}: the server's time is held, and not used to end anything until it is confirmed"


class TrustedTime:
    """The agent's server-signed time.

    Args:
        store: keeps it.
    """

    def __init__(self, core: Core, store: Store) -> None:
        self._core = core
        self._store = store
        self._challenge: tuple[str, float] | None = None

    def agrees(self, signed: int) -> bool:
        """Whether the machine's own clock agrees with a server-signed time."""
        return abs(self._core.clock.wall() - signed) <= TOLERANCE_S

    @property
    def unconfirmed(self) -> UnconfirmedTime | None:
        """The server-signed time that was not taken; None where the last one was."""
        return self._store.record.unconfirmed

    @property
    def settled(self) -> bool:
        """Whether what the server dates now may replace something for good: its time is taken."""
        return self.unconfirmed is None

    def confirm_in(self) -> float | None:
        """Seconds until a contact can confirm the unconfirmed time; None where none can."""
        found = self.unconfirmed
        if found is None or found.standing not in UNSETTLED:
            return None
        passed = since(found.time, self._core.clock.boot(), None)
        return max(0.0, CONFIRM_AFTER_S - passed.least_ms / 1000) if passed.running else float(CONFIRM_AFTER_S)

    async def weigh(self, signed: int, *, fresh: bool) -> Heard:
        """What becomes of a server-signed time. Nothing changes yet: `go_by` goes by it, once its record is kept.

        Args:
            signed: seconds since 1970 UTC.
            fresh: it was signed just now, in answer to a request; otherwise it is a lower bound only.

        Raises:
            HwsecError: the hardware does not tell its clock.
        """
        clock, record = self._core.clock, self._store.record
        first = record.unconfirmed
        passed = None if first is None else since(first.time, clock.boot(), None)
        weighed = weigh(signed, clock.witnesses(), fresh=fresh, first=None if first is None else first.time, passed=passed)
        anchor = await self._anchor_at(signed, fresh=fresh) if weighed.moves else None
        if anchor is not None:
            record = replace(record, time=anchor)
        if weighed.confirmed or weighed.dropped:
            record = replace(record, unconfirmed=None)
        if record.unconfirmed is None and weighed.standing not in (Standing.TAKEN, Standing.PAST):
            time = TimeAnchor(signed, fresh, clock.boot())
            record = replace(record, unconfirmed=UnconfirmedTime(standing=weighed.standing, time=time, clock=clock.now()))
        return Heard(signed, weighed, record, anchor, first)

    def go_by(self, heard: Heard) -> None:
        """Sets the clock by what was weighed, and logs what has become of it."""
        if heard.anchor is not None:
            self._set_clock(heard.anchor)
        self._set_unconfirmed(heard.first, heard.record.unconfirmed)
        self._log(heard)

    async def hear(self, signed: int, *, fresh: bool) -> None:
        """Weighs a time that the server has signed, and goes by it; the next commit stores it.

        Raises:
            HwsecError: the hardware does not tell its clock.
        """
        async with self._core.hardware.turn:
            heard = await self.weigh(signed, fresh=fresh)
            self._store.note(heard.record)
            self.go_by(heard)

    async def confirm(self, actor: dict[str, Any]) -> int:
        """Takes the unconfirmed time, because an administrator knows that it is right; returns it as it would be now.

        Raises:
            Refused: there is none, or it is one that has passed.
            HwsecError, AuditUnavailable: nothing has changed.
        """
        core, store = self._core, self._store
        async with core.hardware.turn:
            found = store.record.unconfirmed
            if found is None:
                raise Refused("no time of the server is waiting for a confirmation")
            if found.standing is Standing.BEHIND:
                raise Refused(
                    "the server's time is before a time that has certainly passed, and a confirmation never moves the clock "
                    "back; if the server is right, use 'license-agent-cli clock challenge' and 'clock reset'"
                )
            passed = since(found.time, core.clock.boot(), None)
            signed = found.time.signed + passed.least_ms // 1000
            anchor = await self._anchor_at(signed, fresh=found.time.fresh and passed.running)
            await core.audit.record_durably(
                "clock.confirmed", "begun", actor=actor, signed=signed, clock=core.clock.now(), standing=found.standing.value
            )
            record = replace(store.record, time=anchor, unconfirmed=None)
            await store.commit(store.ring.contents(record.sections()), record)
            self._set_clock(anchor)
            self._set_unconfirmed(found, None)
            core.audit.record("clock.confirmed", "ok", actor=actor, signed=signed, by="administrator")
            return signed

    async def _anchor_at(self, signed: int, *, fresh: bool) -> TimeAnchor:
        read = self._core.clock.boot
        boot, tpm = await self._core.hardware.run(lambda connection: read_counters(connection.backend, read), COMMIT_DEADLINE_S)
        return TimeAnchor(signed, fresh, boot, tpm)

    def _set_clock(self, anchor: TimeAnchor) -> None:
        # The counters of the anchor are of this boot, so CLOCK_BOOTTIME alone tells what has passed since.
        self._core.clock.set_anchor(anchor, self._core.clock.boot(), None)

    def _set_unconfirmed(self, was: UnconfirmedTime | None, found: UnconfirmedTime | None) -> None:
        clock = self._core.clock
        if found is None:
            clock.set_unconfirmed(None)
        elif found is not was:
            clock.set_unconfirmed(found.time, clock.boot())

    def _log(self, heard: Heard) -> None:
        audit, first, weighed, clock = self._core.audit, heard.first, heard.weighed, self._core.clock
        if first is not None and weighed.confirmed:
            log.info("the server's time is confirmed: %s", utc(heard.signed))
            audit.record("clock.confirmed", "ok", signed=heard.signed, standing=first.standing.value, by="server")
        if first is not None and weighed.dropped:
            log.warning("the server's time %s is dropped: a later contact contradicts it", utc(first.time.signed))
            audit.record("clock.dropped", "ok", signed=first.time.signed, standing=first.standing.value, now=heard.signed)
        found = heard.record.unconfirmed
        if found is None or found is first:
            return
        log.warning("%s", describe(found.standing, found.time.signed, found.clock))
        audit.record(_EVENTS[found.standing], "ok", signed=found.time.signed, clock=found.clock, floor=clock.floor)

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
            found = store.record.unconfirmed
            anchor = await self._anchor_at(signed, fresh=age <= FRESH_S)
            await core.audit.record_durably(
                "clock.reset", "begun", actor=actor, signed=signed, floor=core.clock.floor, wall=int(core.clock.wall())
            )
            record = replace(store.record, time=anchor, unconfirmed=None)
            await store.commit(store.ring.contents(record.sections()), record)
            self._challenge = None
            self._set_clock(anchor)
            self._set_unconfirmed(found, None)
            core.audit.record("clock.reset", "ok", actor=actor, signed=signed)
            return signed
