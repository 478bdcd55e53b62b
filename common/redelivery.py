"""Decides what follows an attempt to deliver an event. Pure.

Events go out in the order of their numbers, so one that its receiver does not take holds up those behind it. It is tried again
after growing pauses. A receiver that refuses one event for what it is gets the next after a few attempts; one that is down gets
everything of the last days when it is back.
"""

from dataclasses import dataclass
from enum import StrEnum

FIRST_PAUSE_S = 10
LONGEST_PAUSE_S = 3600
ATTEMPTS_REFUSED = 5
"""How often an event is sent whose receiver answers 4xx."""
DEAD_AFTER_S = 3 * 86_400
"""How old an event is, and how long its receiver has failed, before it is a dead letter."""
_TRY_LATER = (408, 425, 429)
"""4xx that say nothing about the event."""
GONE = 410


class Next(StrEnum):
    """What follows an attempt."""

    DELIVERED = "delivered"
    AGAIN = "again"
    DEAD = "dead"
    """The event is put aside, and the next one is due."""
    PAUSE = "pause"
    """The receiver wants nothing more."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How an attempt ended.

    Attributes:
        status: of HTTP; None without an answer.
        problem: what went wrong, in words; empty if nothing did.
        retry_after_s: what the receiver asks for.
    """

    status: int | None
    problem: str = ""
    retry_after_s: int | None = None

    @property
    def taken(self) -> bool:
        """Whether the receiver has taken the event."""
        return self.status is not None and 200 <= self.status < 300


def judge(attempt: Attempt, attempts: int, failing_s: int, event_age_s: int) -> Next:
    """What follows.

    Args:
        attempt: the one that has ended.
        attempts: of this event, with that one.
        failing_s: seconds since the first failure after the last success.
        event_age_s: seconds since the event happened.
    """
    if attempt.taken:
        return Next.DELIVERED
    if attempt.status == GONE:
        return Next.PAUSE
    refused = attempt.status is not None and 400 <= attempt.status < 500 and attempt.status not in _TRY_LATER
    if refused and attempts >= ATTEMPTS_REFUSED:
        return Next.DEAD
    if failing_s >= DEAD_AFTER_S and event_age_s >= DEAD_AFTER_S:
        return Next.DEAD
    return Next.AGAIN


def pause_s(attempts: int, asked_s: int | None, draw: float) -> int:
    """Seconds until the next attempt.

    Args:
        attempts: that have failed in a row; at least 1.
        asked_s: what the receiver asks for (Retry-After), or None.
        draw: a random number between 0 and 1: a fifth of the pause is left to chance.
    """
    pause: int = min(FIRST_PAUSE_S * 3 ** min(attempts - 1, 10), LONGEST_PAUSE_S)
    pause = round(pause * (0.9 + 0.2 * draw))
    return pause if asked_s is None else max(pause, min(asked_s, LONGEST_PAUSE_S))
