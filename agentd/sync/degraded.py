"""Degraded mode as a table: the agent works without its server. Nothing here performs IO.

    ONLINE    the server answers, or nothing is due
    DEGRADED  a new secret is due and cannot be had; licenses pass until `grace_until`
    EXPIRED   `grace_until` has passed; licenses are refused

Nothing here makes a license valid or invalid: verdicts go by the dates of the secret. What is told apart is what the
administrator and the POS application are told, and what is counted, logged and alerted.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from agentd.base.config import CONTACTS_FAILED
from common.statetable import Table


class Mode(StrEnum):
    """How the agent works."""

    ONLINE = "online"
    DEGRADED = "degraded"
    EXPIRED = "expired"


class Event(StrEnum):
    """What can happen."""

    CUT_OFF = "cut_off"
    """A new secret is due, and the server was out of reach too often, or there is none to ask."""
    SWITCHED_ON = "switched_on"
    """An administrator wants the server left alone."""
    RESTORED = "restored"
    """The newest secret is not due any more, or the server answers, and no administrator holds it back."""
    GRACE_ENDED = "grace_ended"


TRANSITIONS: dict[Mode, dict[Event, Mode]] = {
    Mode.ONLINE: {Event.CUT_OFF: Mode.DEGRADED, Event.SWITCHED_ON: Mode.DEGRADED},
    Mode.DEGRADED: {Event.RESTORED: Mode.ONLINE, Event.GRACE_ENDED: Mode.EXPIRED},
    Mode.EXPIRED: {Event.RESTORED: Mode.ONLINE},
}
step = Table("an agent", TRANSITIONS).step


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the mode is decided by.

    Attributes:
        has_server: there is a server to contact; without one, secrets are carried by hand.
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
    """The mode, and how it came about. Times are seconds since 1970 UTC.

    Attributes:
        mode: now.
        since: when it left ONLINE; None while it is ONLINE.
        held: an administrator has switched it on.
    """

    mode: Mode = Mode.ONLINE
    since: int | None = None
    held: bool = False


def events(state: Degraded, outlook: Outlook, after: int = CONTACTS_FAILED) -> tuple[Event, ...]:
    """What has happened, in the order in which it is to be taken in.

    Args:
        state: the mode until now.
        outlook: what it is decided by.
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
        # It is left when the server answers again, also before the rotation that is due has been done.
        happened.append(Event.RESTORED)
    degraded = (state.mode is Mode.DEGRADED and wanted) or (bool(happened) and happened[-1] is not Event.RESTORED)
    if degraded and outlook.ended:
        happened.append(Event.GRACE_ENDED)
    return tuple(happened)


def moved(state: Degraded, outlook: Outlook, now: int, after: int = CONTACTS_FAILED) -> Degraded:
    """The mode now.

    Args:
        state: the mode until now.
        outlook: what it is decided by.
        now: seconds since 1970 UTC.
        after: contacts that must have failed in a row.
    """
    for event in events(state, outlook, after):
        mode = step(state.mode, event)
        since = None if mode is Mode.ONLINE else now if state.since is None else state.since
        state = replace(state, mode=mode, since=since)
    return replace(state, held=outlook.held)
