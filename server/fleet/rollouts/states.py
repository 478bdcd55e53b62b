"""Lists the states of a rollout, of its groups and of its devices, and what leads from one to the next. Pure."""

from enum import StrEnum

from common.statetable import Table
from server.ota.directive_states import State as Directive


class State(StrEnum):
    """How far a rollout has come."""

    DRAFT = "draft"
    """Its devices are in groups; none of them is concerned yet."""
    ANNOUNCED = "announced"
    """Two people want it; the period of notice has not ended."""
    RUNNING = "running"
    PAUSED = "paused"
    """No device is given an order, and no group starts. What was ordered goes on."""
    FINISHED = "finished"
    STOPPED = "stopped"
    """No device is given an order any more, and what a device has not begun is withdrawn."""
    ROLLED_BACK = "rolled-back"
    """It was stopped or finished, and another rollout has taken its devices back."""


class Event(StrEnum):
    """What happens to a rollout."""

    START = "start"
    BEGIN = "begin"
    PAUSE = "pause"
    RESUME = "resume"
    FINISH = "finish"
    STOP = "stop"
    ROLL_BACK = "roll-back"


ROLLOUT_STATES: Table[State, Event] = Table(
    "a rollout",
    {
        State.DRAFT: {Event.START: State.ANNOUNCED, Event.STOP: State.STOPPED},
        State.ANNOUNCED: {
            Event.BEGIN: State.RUNNING,
            Event.PAUSE: State.PAUSED,
            Event.FINISH: State.FINISHED,
            Event.STOP: State.STOPPED,
        },
        State.RUNNING: {Event.PAUSE: State.PAUSED, Event.FINISH: State.FINISHED, Event.STOP: State.STOPPED},
        State.PAUSED: {Event.RESUME: State.ANNOUNCED, Event.FINISH: State.FINISHED, Event.STOP: State.STOPPED},
        State.FINISHED: {Event.ROLL_BACK: State.ROLLED_BACK},
        State.STOPPED: {Event.ROLL_BACK: State.ROLLED_BACK},
        State.ROLLED_BACK: {},
    },
)
LIVE = (State.ANNOUNCED, State.RUNNING, State.PAUSED)
"""The states in which a rollout keeps later ones of the same product waiting."""


class Group(StrEnum):
    """How far a group has come."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    """As many of its devices as the policy wants have proved the update. The others go on."""
    FAILED = "failed"


class GroupEvent(StrEnum):
    """What happens to a group."""

    START = "start"
    SUCCEED = "succeed"
    FAIL = "fail"


GROUP_STATES: Table[Group, GroupEvent] = Table(
    "a group",
    {
        Group.WAITING: {GroupEvent.START: Group.RUNNING},
        Group.RUNNING: {GroupEvent.SUCCEED: Group.SUCCEEDED, GroupEvent.FAIL: Group.FAILED},
        # Devices that fail after the others have proved it stop the rollout too.
        Group.SUCCEEDED: {GroupEvent.FAIL: Group.FAILED},
        Group.FAILED: {},
    },
)


class Device(StrEnum):
    """How far a device has come."""

    WAITING = "waiting"
    """Nothing was ordered: its group has not started, it has made no contact since, or something is in the way."""
    ORDERED = "ordered"
    """It has an order, and has switched to nothing yet."""
    UNDER_WAY = "under-way"
    """The new version runs on trial."""
    INSTALLED = "installed"
    """It says that it has installed the update."""
    PROVED = "proved"
    """It reports, after its restart, that exactly this build runs."""
    FAILED = "failed"
    REFUSED = "refused"
    """It does not accept the order or the package."""
    LEFT_OUT = "left-out"
    """It was given no order, or did not begin what was ordered. This says nothing about the update."""


class DeviceEvent(StrEnum):
    """What happens to a device of a rollout."""

    ORDER = "order"
    BEGIN = "begin"
    INSTALL = "install"
    PROVE = "prove"
    FAIL = "fail"
    REFUSE = "refuse"
    LEAVE_OUT = "leave-out"
    POSTPONE = "postpone"
    """Its order ended before a day on which nothing may begin: it gets another one afterwards."""


_REPORTED = {
    DeviceEvent.BEGIN: Device.UNDER_WAY,
    DeviceEvent.INSTALL: Device.INSTALLED,
    DeviceEvent.PROVE: Device.PROVED,
    DeviceEvent.FAIL: Device.FAILED,
    DeviceEvent.REFUSE: Device.REFUSED,
}
DEVICE_STATES: Table[Device, DeviceEvent] = Table(
    "a device of a rollout",
    {
        Device.WAITING: {
            DeviceEvent.ORDER: Device.ORDERED,
            DeviceEvent.PROVE: Device.PROVED,
            DeviceEvent.LEAVE_OUT: Device.LEFT_OUT,
        },
        Device.ORDERED: {**_REPORTED, DeviceEvent.LEAVE_OUT: Device.LEFT_OUT, DeviceEvent.POSTPONE: Device.WAITING},
        Device.UNDER_WAY: {
            DeviceEvent.INSTALL: Device.INSTALLED,
            DeviceEvent.PROVE: Device.PROVED,
            DeviceEvent.FAIL: Device.FAILED,
            DeviceEvent.REFUSE: Device.REFUSED,
        },
        Device.INSTALLED: {DeviceEvent.PROVE: Device.PROVED, DeviceEvent.FAIL: Device.FAILED},
        # Reports may come late: what a device shows counts, whatever was assumed of it.
        Device.FAILED: {DeviceEvent.PROVE: Device.PROVED},
        Device.LEFT_OUT: _REPORTED,
        Device.REFUSED: {},
        Device.PROVED: {},
    },
)
OPEN = (Device.WAITING, Device.ORDERED, Device.UNDER_WAY, Device.INSTALLED)
"""The states in which something is still to come. The indexes of the table have the same."""
ORDERED = (Device.ORDERED, Device.UNDER_WAY, Device.INSTALLED)
"""The states in which a device has an order that is not done. It gets no other one meanwhile."""
COUNTER = {
    Device.WAITING: "waiting",
    Device.ORDERED: "under_way",
    Device.UNDER_WAY: "under_way",
    Device.INSTALLED: "under_way",
    Device.PROVED: "proved",
    Device.FAILED: "failed",
    Device.REFUSED: "failed",
    Device.LEFT_OUT: "left_out",
}
"""The counter of the group in which a device of this state is."""
NOT_SWITCHED = frozenset({"", "offered", "window", "backed-up", "downloaded", "staged"})
"""What an agent says of an update (`Outcome.detail`) as long as it can still be taken back without a trace."""


def of_directive(state: Directive, detail: str) -> DeviceEvent | None:
    """What the state of a device's directive says of the device; None if nothing new.

    Args:
        state: of the directive.
        detail: what the agent says of it.
    """
    match state:
        case Directive.ORDERED | Directive.DELIVERED:
            return None
        case Directive.UNDER_WAY:
            return None if detail in NOT_SWITCHED else DeviceEvent.BEGIN
        case Directive.INSTALLED:
            return DeviceEvent.INSTALL
        case Directive.PROVED:
            return DeviceEvent.PROVE
        case Directive.ROLLED_BACK | Directive.LOCKED:
            return DeviceEvent.FAIL
        case Directive.REFUSED:
            return DeviceEvent.REFUSE
        case Directive.WITHDRAWN | Directive.SUPERSEDED | Directive.EXPIRED:
            return DeviceEvent.LEAVE_OUT
