"""Lists the states of an action, which is one offer to install a package, and what leads from one to the next. Pure."""

from enum import StrEnum

from common.statetable import Table


class State(StrEnum):
    """How far an action has come."""

    OFFERED = "offered"
    """The device has not asked for it yet."""
    FETCHED = "fetched"
    """The device knows it."""
    UNDER_WAY = "under-way"
    CANCELING = "canceling"
    """The device is to stop it, and has not answered yet."""
    UNSTOPPABLE = "unstoppable"
    """The device has refused to stop it, and goes on."""
    INSTALLED = "installed"
    """The device says that it has installed it."""
    PROVED = "proved"
    """The device has named the version among its attributes."""
    FAILED = "failed"
    CANCELED = "canceled"


class Event(StrEnum):
    """What happens to an action."""

    FETCH = "fetch"
    PROGRESS = "progress"
    INSTALL = "install"
    PROVE = "prove"
    FAIL = "fail"
    WITHDRAW = "withdraw"
    """The rollout takes it back."""
    STOP = "stop"
    """The device says that it has stopped it."""
    GO_ON = "go-on"
    """The device says that it cannot stop it."""


_ENDS = {Event.INSTALL: State.INSTALLED, Event.PROVE: State.PROVED, Event.FAIL: State.FAILED}

ACTION_STATES: Table[State, Event] = Table(
    "an action",
    {
        State.OFFERED: {
            Event.FETCH: State.FETCHED, Event.PROGRESS: State.UNDER_WAY, **_ENDS, Event.WITHDRAW: State.CANCELED,
        },
        State.FETCHED: {
            Event.FETCH: State.FETCHED, Event.PROGRESS: State.UNDER_WAY, **_ENDS, Event.WITHDRAW: State.CANCELING,
        },
        State.UNDER_WAY: {
            Event.FETCH: State.UNDER_WAY, Event.PROGRESS: State.UNDER_WAY, **_ENDS, Event.WITHDRAW: State.CANCELING,
        },
        State.CANCELING: {
            Event.FETCH: State.CANCELING, Event.PROGRESS: State.CANCELING, Event.WITHDRAW: State.CANCELING, **_ENDS,
            Event.STOP: State.CANCELED, Event.GO_ON: State.UNSTOPPABLE,
        },
        State.UNSTOPPABLE: {
            Event.FETCH: State.UNSTOPPABLE, Event.PROGRESS: State.UNSTOPPABLE, Event.WITHDRAW: State.UNSTOPPABLE, **_ENDS,
        },
        State.INSTALLED: {Event.PROVE: State.PROVED, Event.FAIL: State.FAILED, Event.WITHDRAW: State.CANCELED},
        State.PROVED: {},
        State.FAILED: {},
        State.CANCELED: {},
    },
)  # fmt: skip
OPEN = (State.OFFERED, State.FETCHED, State.UNDER_WAY, State.CANCELING, State.UNSTOPPABLE, State.INSTALLED)
"""The states of an action that has not ended. A device has one such action at most."""
SHOWN = (State.OFFERED, State.FETCHED, State.UNDER_WAY, State.UNSTOPPABLE)
"""The states in which a device may fetch the action and its package, and report on it."""
BEGUN = (State.UNDER_WAY, State.UNSTOPPABLE)
"""The states in which the device is shown the action although its window has closed: SWUpdate reports after its restart only
on a deployment that it is shown."""
