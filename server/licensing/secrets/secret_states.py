"""Declares the states of a secret version on the server, and the transitions between them. Pure.

PENDING      made, and delivered until the agent confirms that it has sealed it
ACTIVE       confirmed: licenses are issued under it
GRACE        superseded; licenses under it are valid until `grace_until`
ENDED        replaced before the agent confirmed it
DIVERGED     the agent holds another secret under the same number; no license is issued under it
INVALIDATED  destroyed by an administrator
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
    """The agent never confirmed it, and a later version is delivered."""
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

ISSUING = (State.ACTIVE,)
"""Licenses are issued under the newest version in one of these states."""


def shown_state(state: str, grace_until: int, now: int) -> str:
    """A state as people see it: nothing changes the row when the grace ends.

    Args:
        state: of the version.
        grace_until: seconds since 1970 UTC.
        now: seconds since 1970 UTC.
    """
    return f"{state} (over)" if state == State.GRACE and grace_until <= now else state
