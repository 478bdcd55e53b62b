"""Defines the life cycle of a secret version as a table. Every change of state is decided here; performs no IO.

Only the word of the server or an administrator is stored as a state. What time has done is computed at each look, so a clock
that jumps forward and back changes nothing for good.
"""

from dataclasses import dataclass
from enum import StrEnum

from common.statetable import Table
from hwsec.storeformat import VersionMeta


class State(StrEnum):
    """State of a secret version."""

    ACTIVE = "ACTIVE"
    """The newest one; the server issues new licenses under it."""
    GRACE = "GRACE"
    """Licenses under it still pass, until its grace_until."""
    INVALIDATED = "INVALIDATED"
    """Licenses under it are refused."""


class Event(StrEnum):
    """What can happen to a secret version."""

    SUPERSEDED = "superseded"
    VALIDITY_ENDED = "validity_ended"
    GRACE_ENDED = "grace_ended"
    INVALIDATED = "invalidated"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.ACTIVE: {
        Event.SUPERSEDED: State.GRACE,
        Event.VALIDITY_ENDED: State.GRACE,
        Event.INVALIDATED: State.INVALIDATED,
    },
    State.GRACE: {
        Event.SUPERSEDED: State.GRACE,
        Event.GRACE_ENDED: State.INVALIDATED,
        Event.INVALIDATED: State.INVALIDATED,
    },
    State.INVALIDATED: {},
}
step = Table("a secret version", TRANSITIONS).step

STATE_NUMBERS = {State.ACTIVE: 1, State.GRACE: 2, State.INVALIDATED: 3}
"""The numbers of the states in the TPM's anchor; append-only."""

MAX_VERSIONS = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration may shorten; None leaves the server's dates alone. In seconds."""

    rotation_interval: int | None = None
    grace_period: int | None = None


def valid_until(meta: VersionMeta, limits: Limits) -> int:
    """When a successor is due: the server's date, or earlier by the local interval."""
    if limits.rotation_interval is None:
        return meta.valid_until
    return min(meta.valid_until, meta.valid_from + limits.rotation_interval)


def grace_until(meta: VersionMeta, limits: Limits) -> int:
    """When licenses under this version end: the server's date, or earlier by the local period, never later."""
    if limits.grace_period is None:
        return meta.grace_until
    return min(meta.grace_until, valid_until(meta, limits) + limits.grace_period)


def state_at(meta: VersionMeta, now: int, limits: Limits) -> State:
    """The state at a time: the stored one, moved on by what time has done."""
    state = State(meta.state)
    if state is State.ACTIVE and now >= valid_until(meta, limits):
        state = step(state, Event.VALIDITY_ENDED)
    if state is State.GRACE and now >= grace_until(meta, limits):
        state = step(state, Event.GRACE_ENDED)
    return state


def next_change(meta: VersionMeta, now: int, limits: Limits) -> int | None:
    """When time will next change the state; None if it will not."""
    state = state_at(meta, now, limits)
    if state is State.ACTIVE:
        return valid_until(meta, limits)
    if state is State.GRACE:
        return grace_until(meta, limits)
    return None
