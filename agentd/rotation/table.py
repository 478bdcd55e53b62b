"""The rotation as a table. Everything that may change where a rotation stands is here; nothing performs IO, `rotor` does.

    IDLE       nothing to do
    REQUESTED  ask the server for a secret, and seal what it delivers
    SEALED     tell the server that the version is sealed here: it makes licenses with it from now on
    CONFIRMED  fetch new tokens for this machine's licenses, under the new version
    ACTIVATED  log that it is done

Each step is journalled before its effect, and every effect may be repeated: a process that was killed takes up the step that
the journal names. The journal decides no verdict. One that is lost or was changed costs another question to the server.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from agentd.uplink.schedule import early, share
from common.statetable import Table
from contracts.exchange import Cause

ROTATE_EARLY = (0.05, 0.15)
"""A rotation starts when this share of the secret's time is left: between the two, by the agent's jitter."""

Version = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class Step(StrEnum):
    """Where a rotation stands."""

    IDLE = "idle"
    REQUESTED = "requested"
    SEALED = "sealed"
    CONFIRMED = "confirmed"
    ACTIVATED = "activated"


class Event(StrEnum):
    """What can happen to a rotation."""

    WANTED = "wanted"
    """It is due, an administrator or the server wants it, or the server waits for the confirmation of the newest version."""
    DELIVERED = "delivered"
    """A new version is sealed."""
    UNCONFIRMED = "unconfirmed"
    """The newest version is sealed here, and the server has not heard of it."""
    ACKNOWLEDGED = "acknowledged"
    """The server makes licenses with the version."""
    REISSUED = "reissued"
    """All new tokens are here that can be had."""
    LOGGED = "logged"
    LOST = "lost"
    """The server does not know the version, or holds another secret under its number."""
    REFUSED = "refused"
    """The server will not rotate now."""


TRANSITIONS: dict[Step, dict[Event, Step]] = {
    Step.IDLE: {Event.WANTED: Step.REQUESTED, Event.UNCONFIRMED: Step.SEALED},
    Step.REQUESTED: {Event.DELIVERED: Step.SEALED, Event.REFUSED: Step.IDLE},
    Step.SEALED: {Event.ACKNOWLEDGED: Step.CONFIRMED, Event.LOST: Step.REQUESTED, Event.REFUSED: Step.IDLE},
    Step.CONFIRMED: {Event.REISSUED: Step.ACTIVATED, Event.LOST: Step.REQUESTED, Event.REFUSED: Step.ACTIVATED},
    Step.ACTIVATED: {Event.LOGGED: Step.IDLE},
}
step = Table("a rotation", TRANSITIONS).step


class Rotation(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where a rotation stands: what the journal holds.

    Attributes:
        step: where.
        cause: why it was begun.
        before: the newest version when it was begun; 0 if there was none.
        version: the version that is sealed, confirmed or activated; 0 until there is one.
        since: when it was begun, seconds since 1970 UTC.
    """

    step: Step = Step.IDLE
    cause: Cause = Cause.DUE
    before: Version = 0
    version: Version = 0
    since: int = 0


def advance(rotation: Rotation, event: Event, version: int | None = None) -> Rotation:
    """Where the rotation stands after an event.

    Args:
        rotation: where it stood.
        event: what happened.
        version: with DELIVERED and UNCONFIRMED, which one is sealed.

    Raises:
        UnknownTransition: the table does not know the event at this step.
    """
    after = step(rotation.step, event)
    if event is Event.LOST:
        # What is sealed stays sealed; the next version is asked for on top of it.
        return msgspec.structs.replace(rotation, step=after, before=rotation.version, version=0)
    return msgspec.structs.replace(rotation, step=after, version=rotation.version if version is None else version)


def begun(cause: Cause, newest: int, now: int) -> Rotation:
    """A rotation that asks for the successor of `newest`."""
    return advance(Rotation(cause=cause, before=newest, since=now), Event.WANTED)


def unconfirmed(newest: int, now: int) -> Rotation:
    """A rotation of which the server has not heard the end."""
    return advance(Rotation(cause=Cause.DUE, before=newest, since=now), Event.UNCONFIRMED, newest)


def taken_up(rotation: Rotation, newest: int) -> Rotation:
    """Where a rotation stands when it is taken up after a restart, by the newest version in the sealed store.

    The store is what counts: a version may have been sealed and the journal not have heard of it, and a store that was
    restored may lack the version that the journal speaks of.
    """
    if rotation.step is Step.REQUESTED and newest > rotation.before:
        return advance(rotation, Event.DELIVERED, newest)
    if rotation.step in (Step.SEALED, Step.CONFIRMED, Step.ACTIVATED) and newest != rotation.version:
        return unconfirmed(newest, rotation.since) if newest else Rotation()
    return rotation


def rotation_time(agent_id: str, version: int, valid_from: int, valid_until: int) -> int:
    """When the agent asks for the successor of a version: some time before it is due, seconds since 1970 UTC."""
    left = early(ROTATE_EARLY, share(agent_id, "rotation", version))
    return valid_until - int((valid_until - valid_from) * left)
