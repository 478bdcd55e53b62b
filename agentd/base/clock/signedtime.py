"""Decides what a server-signed time does to the agent's clock: taken, provisional, held or behind. A table; performs no IO.

The server's clock may be wrong too, so its word has a ceiling. Two witnesses on the machine judge it:

    elapsed  what has passed since a time that was fresh when it came, while the machine has been running
    wall     the machine's own clock, unless it is behind a time that has certainly passed

One witness that agrees is enough. Without a witness (dead battery after a restart) the time is provisional; where a witness
contradicts and none agrees, it is held. Neither raises the floor, ends a license, or replaces anything for good. A second
contact, at least `CONFIRM_AFTER_S` later, confirms either if the server's clock has gone on as this machine's counters have.
"""

from dataclasses import dataclass
from enum import StrEnum

from .timeanchor import TOLERANCE_S, Since, TimeAnchor, tolerance

CONFIRM_AFTER_S = 1800
"""The contact that confirms a time comes so much later at least: a clock that was wrong for some minutes is right again."""


class Says(StrEnum):
    """What one witness says of a signed time."""

    ABSENT = "absent"
    AGREES = "agrees"
    CONTRADICTS = "contradicts"


class Standing(StrEnum):
    """What becomes of a signed time."""

    TAKEN = "taken"
    """It counts: a witness agrees, or a later contact or an administrator has confirmed it."""
    PROVISIONAL = "provisional"
    """Nothing on this machine knows the time. It counts as the latest time that it may be."""
    HELD = "held"
    """A witness contradicts it. It counts as the latest time that it may be, and an alert is raised."""
    BEHIND = "behind"
    """It has certainly passed: the server's clock is behind, or this agent's floor is too late."""
    PAST = "past"
    """A statement that was made earlier and says nothing new."""


JUDGMENTS: dict[tuple[Says, Says], Standing] = {
    (Says.AGREES, Says.AGREES): Standing.TAKEN,
    (Says.AGREES, Says.ABSENT): Standing.TAKEN,
    (Says.AGREES, Says.CONTRADICTS): Standing.TAKEN,
    (Says.ABSENT, Says.AGREES): Standing.TAKEN,
    (Says.CONTRADICTS, Says.AGREES): Standing.TAKEN,
    (Says.ABSENT, Says.ABSENT): Standing.PROVISIONAL,
    (Says.ABSENT, Says.CONTRADICTS): Standing.HELD,
    (Says.CONTRADICTS, Says.ABSENT): Standing.HELD,
    (Says.CONTRADICTS, Says.CONTRADICTS): Standing.HELD,
}
"""By what elapsed time and wall clock say."""


UNSETTLED = frozenset({Standing.PROVISIONAL, Standing.HELD})
"""What a second contact may confirm."""


@dataclass(frozen=True, slots=True)
class Witnesses:
    """What the machine knows of the time without the server. Times are seconds since 1970 UTC.

    Attributes:
        floor: a time that has certainly passed.
        exact_s: how far the present may be from the floor, in seconds; None if the machine has not been running since a time
            that was fresh when it came, so that the floor is a lower bound only.
        wall: the machine's own clock.
    """

    floor: float
    exact_s: float | None
    wall: float

    def elapsed_says(self, signed: int, *, fresh: bool) -> Says:
        """What elapsed time says of a signed time."""
        if self.exact_s is None:
            return Says.ABSENT
        return _says(self.floor, signed, self.exact_s, fresh)

    def wall_says(self, signed: int, *, fresh: bool) -> Says:
        """What the machine's own clock says of a signed time."""
        if self.wall + TOLERANCE_S < self.floor:
            return Says.ABSENT
        return _says(self.wall, signed, TOLERANCE_S, fresh)


def _says(present: float, signed: int, within: float, fresh: bool) -> Says:
    # A statement that was carried here may be old, and cannot be younger than the present.
    agrees = signed <= present + within and (not fresh or present <= signed + within)
    return Says.AGREES if agrees else Says.CONTRADICTS


@dataclass(frozen=True, slots=True)
class Weighed:
    """What becomes of a signed time, and of the unconfirmed one before it.

    Attributes:
        standing: of the signed time.
        moves: the clock goes by it from now on: it is taken, and later than the floor.
        confirmed: the unconfirmed time before it has proven right.
        dropped: the unconfirmed time before it no longer counts.
    """

    standing: Standing
    moves: bool = False
    confirmed: bool = False
    dropped: bool = False


def judge(signed: int, witnesses: Witnesses, *, fresh: bool) -> Standing:
    """What the witnesses make of a signed time.

    Args:
        signed: seconds since 1970 UTC.
        witnesses: of this machine.
        fresh: it was signed just now, in answer to a request; otherwise it says only that this time has passed.
    """
    floor = witnesses.floor
    if signed <= floor:
        within = TOLERANCE_S if witnesses.exact_s is None else witnesses.exact_s
        if not fresh:
            return Standing.PAST
        return Standing.BEHIND if signed + within < floor else Standing.TAKEN
    return JUDGMENTS[witnesses.elapsed_says(signed, fresh=fresh), witnesses.wall_says(signed, fresh=fresh)]


def advanced(first: TimeAnchor, signed: int, passed: Since) -> bool:
    """Whether the server's clock has gone on, since an earlier signed time, as this machine's counters have."""
    seconds = passed.least_ms / 1000
    return passed.running and abs(signed - first.signed - seconds) <= tolerance(seconds)


def weigh(signed: int, witnesses: Witnesses, *, fresh: bool, first: TimeAnchor | None, passed: Since | None) -> Weighed:
    """What becomes of a signed time.

    Args:
        signed: seconds since 1970 UTC.
        witnesses: of this machine.
        fresh: as in `judge`.
        first: the unconfirmed time before it, with what the counters showed then; None if there is none.
        passed: since `first`; None without one.
    """
    standing = judge(signed, witnesses, fresh=fresh)
    if first is None or passed is None or not fresh:
        # A statement that was carried here neither confirms nor refutes what a contact has said.
        return Weighed(standing, standing is Standing.TAKEN and signed > witnesses.floor)
    agrees = advanced(first, signed, passed)
    if agrees and standing in UNSETTLED and passed.least_ms >= CONFIRM_AFTER_S * 1000:
        standing = Standing.TAKEN
    taken = standing is Standing.TAKEN
    return Weighed(standing, taken and signed > witnesses.floor, confirmed=agrees and taken, dropped=not agrees)
