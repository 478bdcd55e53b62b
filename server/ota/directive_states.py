"""Lists the states of a directive and what leads from one to the next. Pure."""

from enum import StrEnum

from common.statetable import Table
from contracts.contact.updates import OutcomeState


class State(StrEnum):
    """How far a directive has come."""

    ORDERED = "ordered"
    """The agent has not fetched it yet."""
    DELIVERED = "delivered"
    """The agent knows it."""
    UNDER_WAY = "under-way"
    LOCKED = "locked"
    """Too many attempts have failed; an administrator of the machine has to unlock updates."""
    INSTALLED = "installed"
    """The agent says that it has installed it."""
    PROVED = "proved"
    """The agent reports that exactly this build runs."""
    ROLLED_BACK = "rolled-back"
    REFUSED = "refused"
    """The machine does not accept it."""
    WITHDRAWN = "withdrawn"
    SUPERSEDED = "superseded"
    """A later directive counts."""
    EXPIRED = "expired"


class Event(StrEnum):
    """What happens to a directive."""

    FETCH = "fetch"
    BEGIN = "begin"
    COMMIT = "commit"
    RUN = "run"
    ROLL_BACK = "roll-back"
    REFUSE = "refuse"
    LOCK = "lock"
    WITHDRAW = "withdraw"
    SUPERSEDE = "supersede"
    END = "end"


_REPORTED = {
    Event.BEGIN: State.UNDER_WAY,
    Event.COMMIT: State.INSTALLED,
    Event.RUN: State.PROVED,
    Event.ROLL_BACK: State.ROLLED_BACK,
    Event.REFUSE: State.REFUSED,
    Event.LOCK: State.LOCKED,
}
_ENDED = {Event.WITHDRAW: State.WITHDRAWN, Event.SUPERSEDE: State.SUPERSEDED, Event.END: State.EXPIRED}
_LATE = {Event.COMMIT: State.INSTALLED, Event.RUN: State.PROVED, Event.ROLL_BACK: State.ROLLED_BACK}
"""What an agent may still report of a directive that it had begun when an operator took it back, or its time was over."""

DIRECTIVE_STATES: Table[State, Event] = Table(
    "a directive",
    {
        State.ORDERED: {Event.FETCH: State.DELIVERED, **_REPORTED, **_ENDED},
        State.DELIVERED: {**_REPORTED, **_ENDED},
        State.UNDER_WAY: {**_REPORTED, **_ENDED},
        State.LOCKED: {**_REPORTED, **_ENDED},
        State.INSTALLED: {Event.RUN: State.PROVED, Event.ROLL_BACK: State.ROLLED_BACK, Event.SUPERSEDE: State.SUPERSEDED},
        State.PROVED: {},
        State.ROLLED_BACK: {},
        State.REFUSED: {},
        State.WITHDRAWN: dict(_LATE),
        State.SUPERSEDED: dict(_LATE),
        State.EXPIRED: dict(_LATE),
    },
)
OPEN = (State.ORDERED, State.DELIVERED, State.UNDER_WAY, State.LOCKED)
"""The states in which a directive counts: the agent is given it at each contact."""
EVENT_OF = {
    OutcomeState.PROGRESS: Event.BEGIN,
    OutcomeState.COMMITTED: Event.COMMIT,
    OutcomeState.ROLLED_BACK: Event.ROLL_BACK,
    OutcomeState.REFUSED: Event.REFUSE,
    OutcomeState.LOCKED: Event.LOCK,
}
"""What an outcome that an agent reports does to its directive."""
