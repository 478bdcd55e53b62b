"""Decides which of the server's keys are due for a change. Pure.

The root key is offline, so a key that it must sign cannot be made on the day it is needed. `keys prepare` makes it
ahead, and it waits in the key set; on its day it is put in use without the root. TLS keys and the operator CA need no root
and are made on the day.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from .key_states import KeyState

DAY_S = 86_400
USE_AHEAD_S = {
    "tls": 30 * DAY_S,
    "operator-ca": 30 * DAY_S,
    "issuing-ca": 30 * DAY_S,
    "license": 7 * DAY_S,
    "rotation": 7 * DAY_S,
    "enrollment": 7 * DAY_S,
}
"""How long before the end of the key in use its successor replaces it. License and rotation keys last 180 days, so each is in
use for 173 days: less than six months (OT-10)."""
WARN_AHEAD_S = {
    "tls": 30 * DAY_S,
    "operator-ca": 30 * DAY_S,
    "issuing-ca": 60 * DAY_S,
    "license": 37 * DAY_S,
    "rotation": 37 * DAY_S,
    "enrollment": 37 * DAY_S,
}
"""How long before its end a key without a successor is announced: 30 days before the successor is needed (OP-05)."""


class Action(StrEnum):
    """What is due for a kind of key."""

    USE_NEXT = "use_next"
    """The prepared key replaces the one in use."""
    MAKE = "make"
    """A new key is made and put in use at once; only those that no root signs."""
    PREPARE = "prepare"
    """An administrator has to prepare a key, with the root key."""


@dataclass(frozen=True, slots=True)
class Held:
    """A key as far as the schedule needs it; `expires_at` in seconds since 1970 UTC."""

    kind: str
    kid: str
    state: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done for a kind of key.

    Attributes:
        kind: of the key.
        action: what to do.
        kid: the key in use, which ends.
        ends_at: when it ends, seconds since 1970 UTC.
    """

    kind: str
    action: Action
    kid: str
    ends_at: int


@dataclass(frozen=True, slots=True)
class Planned:
    """What the schedule has for a kind of key. Times are seconds since 1970 UTC.

    Attributes:
        kind: of the key.
        kid: the key in use.
        ends_at: when it ends.
        next_kid: the key that waits; None if there is none.
        use_at: when a successor replaces it.
        warn_at: when the server begins to ask for a successor, if there is none.
    """

    kind: str
    kid: str
    ends_at: int
    next_kid: str | None
    use_at: int
    warn_at: int


def planned(keys: Iterable[Held]) -> list[Planned]:
    """The schedule of all kinds, in the order of `USE_AHEAD_S`; a kind without a key in use is left out."""
    held = list(keys)
    found = []
    for kind, ahead in USE_AHEAD_S.items():
        using = [key for key in held if key.kind == kind and key.state == KeyState.ACTIVE]
        if not using:
            continue
        present = max(using, key=lambda key: key.expires_at)
        waiting = [key.kid for key in held if key.kind == kind and key.state == KeyState.NEXT]
        end = present.expires_at
        found.append(Planned(kind, present.kid, end, waiting[0] if waiting else None, end - ahead, end - WARN_AHEAD_S[kind]))
    return found


def due(keys: Iterable[Held], now: int, *, makes_tls: bool) -> list[Due]:
    """What is to be done now.

    Args:
        keys: all that have not ended.
        now: seconds since 1970 UTC.
        makes_tls: whether a new TLS key can be put in use without an administrator. Behind a proxy it cannot: the proxy
            would go on with its files, and nobody would learn that those end.
    """
    found = []
    for plan in planned(keys):
        if plan.kind == "operator-ca" or (plan.kind == "tls" and makes_tls):
            if now >= plan.use_at:
                found.append(Due(plan.kind, Action.MAKE, plan.kid, plan.ends_at))
        elif plan.next_kid is not None:
            if now >= plan.use_at:
                found.append(Due(plan.kind, Action.USE_NEXT, plan.kid, plan.ends_at))
        elif now >= plan.warn_at:
            found.append(Due(plan.kind, Action.PREPARE, plan.kid, plan.ends_at))
    return found
