"""Decides when degraded mode begins and ends: the agent works without its server. A table; performs no IO.

    ONLINE    the server answers, or nothing is due
    DEGRADED  a new secret is due and the server does not give it; licenses pass until `grace_until`
    EXPIRED   `grace_until` has passed; licenses are refused

The mode makes no license valid or invalid: verdicts go by the dates of the secret. It decides what administrators and POS
applications see, and what the agent counts, logs and alerts.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from agentd.base.config.config import CONTACTS_FAILED
from common.statetable import Table


class Mode(StrEnum):
    """How the agent works."""

    ONLINE = "online"
    DEGRADED = "degraded"
    EXPIRED = "expired"


class Event(StrEnum):
    """What can happen."""

    CUT_OFF = "cut_off"
    """A new secret is due, and too many contacts failed in a row, or the agent has no server."""
    SWITCHED_ON = "switched_on"
    """An administrator switched the mode on."""
    RESTORED = "restored"
    """The newest secret is no longer due, or the server answers, and no administrator keeps the mode on."""
    GRACE_ENDED = "grace_ended"


TRANSITIONS: dict[Mode, dict[Event, Mode]] = {
    Mode.ONLINE: {Event.CUT_OFF: Mode.DEGRADED, Event.SWITCHED_ON: Mode.DEGRADED},
    Mode.DEGRADED: {Event.RESTORED: Mode.ONLINE, Event.GRACE_ENDED: Mode.EXPIRED},
    Mode.EXPIRED: {Event.RESTORED: Mode.ONLINE},
}
step = Table("an agent", TRANSITIONS).step


@dataclass(frozen=True, slots=True)
class Outlook:
    """What decides the mode.

    Attributes:
        has_server: the agent has a server; without one, secrets are carried by hand.
        failures: contacts that failed in a row.
        due: a successor of the newest secret is due.
        ended: grace of the newest secret has ended.
        held: an administrator has switched the mode on.
    """

    has_server: bool
    failures: int
    due: bool
    ended: bool
    held: bool


@dataclass(frozen=True, slots=True)
class Degraded:
    """The mode and its history. Times are seconds since 1970 UTC.

    Attributes:
        mode: now.
        since: when it left ONLINE; None while it is ONLINE.
        held: an administrator has switched it on.
    """

    mode: Mode = Mode.ONLINE
    since: int | None = None
    held: bool = False


def events(state: Degraded, outlook: Outlook, after: int = CONTACTS_FAILED) -> tuple[Event, ...]:
    """What has happened, in the order in which it must be applied.

    Args:
        state: the mode until now.
        after: contacts that must have failed in a row.
    """
    cut_off = outlook.due and (not outlook.has_server or outlook.failures >= after)
    wanted = cut_off or outlook.held
    happened: list[Event] = []
    if state.mode is Mode.ONLINE and wanted:
        happened.append(Event.SWITCHED_ON if outlook.held and not cut_off else Event.CUT_OFF)
    if state.mode is Mode.EXPIRED and not outlook.ended:
        happened.append(Event.RESTORED)
        if wanted:
            happened.append(Event.SWITCHED_ON if outlook.held and not cut_off else Event.CUT_OFF)
    if state.mode is Mode.DEGRADED and not wanted:
        # The agent leaves it as soon as the server answers, even before the rotation that is due is done.
        happened.append(Event.RESTORED)
    degraded = (state.mode is Mode.DEGRADED and wanted) or (bool(happened) and happened[-1] is not Event.RESTORED)
    if degraded and outlook.ended:
        happened.append(Event.GRACE_ENDED)
    return tuple(happened)


def moved(state: Degraded, outlook: Outlook, now: int, after: int = CONTACTS_FAILED) -> Degraded:
    """The mode now.

    Args:
        state: the mode until now.
        now: seconds since 1970 UTC.
        after: contacts that must have failed in a row.
    """
    for event in events(state, outlook, after):
        mode = step(state.mode, event)
        since = None if mode is Mode.ONLINE else now if state.since is None else state.since
        state = replace(state, mode=mode, since=since)
    return replace(state, held=outlook.held)
