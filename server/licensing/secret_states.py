"""Life of a secret version on the server, as a table. Nothing here performs IO.

PENDING      made, and handed out until the agent confirms that it is sealed
ACTIVE       confirmed: licenses are made with it
GRACE        followed by another; licenses under it pass until `grace_until`
ENDED        given up before it was confirmed
DIVERGED     the agent holds another secret under that number: no license is made with it
INVALIDATED  given up by an administrator
"""

from enum import StrEnum

from common.statetable import Table


class State(StrEnum):
    """State of a secret version."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    GRACE = "GRACE"
    ENDED = "ENDED"
    DIVERGED = "DIVERGED"
    INVALIDATED = "INVALIDATED"


class Event(StrEnum):
    """What can happen to a secret version."""

    CONFIRMED = "confirmed"
    SUPERSEDED = "superseded"
    REPLACED = "replaced"
    """It was never confirmed, and a later one is handed out."""
    DIVERGED = "diverged"
    INVALIDATED = "invalidated"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.PENDING: {
        Event.CONFIRMED: State.ACTIVE,
        Event.REPLACED: State.ENDED,
        Event.DIVERGED: State.DIVERGED,
        Event.INVALIDATED: State.INVALIDATED,
    },
    State.ACTIVE: {
        Event.CONFIRMED: State.ACTIVE,
        Event.SUPERSEDED: State.GRACE,
        Event.DIVERGED: State.DIVERGED,
        Event.INVALIDATED: State.INVALIDATED,
    },
    State.GRACE: {
        Event.CONFIRMED: State.GRACE,
        Event.SUPERSEDED: State.GRACE,
        Event.DIVERGED: State.DIVERGED,
        Event.INVALIDATED: State.INVALIDATED,
    },
    State.ENDED: {Event.CONFIRMED: State.ACTIVE, Event.DIVERGED: State.DIVERGED, Event.INVALIDATED: State.INVALIDATED},
    State.DIVERGED: {Event.DIVERGED: State.DIVERGED, Event.INVALIDATED: State.INVALIDATED},
    State.INVALIDATED: {Event.INVALIDATED: State.INVALIDATED},
}
step = Table("a secret version", TRANSITIONS).step

MINTING = (State.ACTIVE,)
"""Licenses are made with the newest of these."""
