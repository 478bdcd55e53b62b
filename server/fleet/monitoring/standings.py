"""Says when a condition becomes an alert and when it ends: after several judgments in a row, so that nothing flickers. Pure.

A judgment that cannot say anything, since too little was observed, changes nothing and interrupts nothing. After a day of such
judgments a condition is forgotten: nobody knows any more whether it holds.
"""

from enum import StrEnum

import msgspec

from common.statetable import Table

FORGOTTEN_AFTER = 288
"""Judgments in a row that cannot say anything: a day of them."""


class Verdict(StrEnum):
    """What one judgment says of a condition."""

    BAD = "bad"
    GOOD = "good"
    UNKNOWN = "unknown"


class State(StrEnum):
    """How a condition stands."""

    QUIET = "quiet"
    SUSPECT = "suspect"
    """It was found, and not often enough yet."""
    RAISED = "raised"
    RECOVERING = "recovering"
    """It is raised, was not found lately, and not long enough yet."""

    @property
    def is_raised(self) -> bool:
        """Whether there is an alert."""
        return self in (State.RAISED, State.RECOVERING)


class Event(StrEnum):
    """What happens to a condition."""

    FOUND = "found"
    FOUND_ENOUGH = "found often enough"
    NOT_FOUND = "not found"
    NOT_FOUND_ENOUGH = "not found for long enough"
    FORGOTTEN = "not observed for long"


_Q, _S, _R, _C = State.QUIET, State.SUSPECT, State.RAISED, State.RECOVERING
_F, _FE, _N, _NE = Event.FOUND, Event.FOUND_ENOUGH, Event.NOT_FOUND, Event.NOT_FOUND_ENOUGH
_FO = Event.FORGOTTEN
STATES = Table(
    "a condition",
    {
        _Q: {_F: _S, _FE: _R, _N: _Q, _NE: _Q, _FO: _Q},
        _S: {_F: _S, _FE: _R, _N: _Q, _NE: _Q, _FO: _Q},
        _R: {_F: _R, _FE: _R, _N: _C, _NE: _Q, _FO: _Q},
        _C: {_F: _R, _FE: _R, _N: _C, _NE: _Q, _FO: _Q},
    },
)


class Standing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a condition stands.

    Attributes:
        state: of the table.
        row: judgments in a row that say the same, up to the number that counts.
        bad: whether they have found it.
        unknown: judgments in a row, the last ones, that could not say anything.
    """

    state: State = State.QUIET
    row: int = 0
    bad: bool = False
    unknown: int = 0


def after(standing: Standing, verdict: Verdict, raise_after: int, clear_after: int) -> Standing:
    """How a condition stands after a judgment.

    Args:
        standing: before it.
        verdict: of the judgment.
        raise_after: judgments in a row that raise.
        clear_after: judgments in a row that clear.
    """
    if verdict is Verdict.UNKNOWN:
        unknown = min(standing.unknown + 1, FORGOTTEN_AFTER)
        if unknown < FORGOTTEN_AFTER:
            return msgspec.structs.replace(standing, unknown=unknown)
        return Standing(STATES.step(standing.state, Event.FORGOTTEN), unknown=unknown)
    bad = verdict is Verdict.BAD
    enough = raise_after if bad else clear_after
    row = min(standing.row + 1 if standing.bad == bad else 1, enough)
    if bad:
        event = Event.FOUND_ENOUGH if row >= enough else Event.FOUND
    else:
        event = Event.NOT_FOUND_ENOUGH if row >= enough else Event.NOT_FOUND
    return Standing(STATES.step(standing.state, event), row, bad)
