"""Defines the steps of a rotation as a table. Every change of step is decided here; `runner` performs the effects.

    IDLE       nothing to do
    REQUESTED  ask the server for a secret, and seal what it delivers
    SEALED     tell the server that the version is sealed here: from now on it issues licenses under it
    CONFIRMED  fetch new tokens for this machine's licenses, under the new version
    ACTIVATED  log that it is done

Each step is journaled before its effect, and every effect may be repeated: after a kill, the next process continues with the
step that the journal names. The journal decides no verdict. If it is lost or was changed, the agent asks the server once more.

A lost reply needs no event of its own: the step stays, and the next contact asks again with a new request. The server hands out
the same unconfirmed version until it is confirmed.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from agentd.uplink.schedule import early
from common.statetable import Table
from contracts.contact.renewal import share
from contracts.exchange import Cause

ROTATE_EARLY = (0.05, 0.15)
"""A rotation starts when this share of the secret's time is left: between the two, by the agent's jitter."""

Version = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class Step(StrEnum):
    """The step that a rotation is at."""

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
    """The newest version is sealed here, and the server does not know that yet."""
    ACKNOWLEDGED = "acknowledged"
    """The server issues licenses under the version."""
    REISSUED = "reissued"
    """All new tokens that the server has for this machine are here."""
    LOGGED = "logged"
    LOST = "lost"
    """The server lost the version: it does not know its number, or holds another secret under it."""
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


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a rotation is, as the journal holds it.

    Attributes:
        step: the next one to perform.
        cause: why it began.
        before: the newest version when it began; 0 if the agent had none.
        version: the version that is sealed, confirmed or activated; 0 until there is one.
        since: when it began, seconds since 1970 UTC.
    """

    step: Step = Step.IDLE
    cause: Cause = Cause.DUE
    before: Version = 0
    version: Version = 0
    since: int = 0


def advance(rotation: Rotation, event: Event, version: int | None = None) -> Rotation:
    """The rotation after an event.

    Args:
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
    """A rotation whose end the server does not know yet."""
    return advance(Rotation(cause=Cause.DUE, before=newest, since=now), Event.UNCONFIRMED, newest)


def taken_up(rotation: Rotation, newest: int) -> Rotation:
    """The rotation as it continues after a restart, given the newest version in the sealed store.

    The store decides: it may hold a version that the journal does not know yet, and a restored store may lack the version that
    the journal names.
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
