"""Decides whether the shop lets an installation begin: by the POS application's answer, or by a gap in its validations. Pure.

The POS application is asked, since it alone knows whether a customer is at the till. Its word postpones, and only until the
last time that the operator has set: from then on until the window closes the installation begins whatever it says. An
application of release 0.1.0 does not answer; then the till counts as free once it has validated nothing for a while.
"""

from dataclasses import dataclass
from enum import StrEnum

from .window import Wait

QUIET_S = 15 * 60
"""A till that has validated nothing for so long is not serving anybody, seconds."""
SHIFT_OVER_S = 60 * 60
"""The same where the application has said "after this shift" and no more."""
READY_S = 15 * 60
"""How long "ready" counts: the till may be busy again after that."""
MAX_BUSY_S = 4 * 3600
"""How far ahead "busy" may reach; the application says it again if it must."""


class Answer(StrEnum):
    """What a POS application says to a waiting update."""

    READY = "ready"
    BUSY = "busy"
    AFTER_SHIFT = "after_shift"


class Mode(StrEnum):
    """Whose consent an installation needs."""

    ASK = "ask"
    """The POS application's; a quiet till's where it does not answer."""
    QUIET = "quiet"
    """A quiet till's."""
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Said:
    """An answer.

    Attributes:
        answer: what was said.
        at: when, monotonic seconds.
        until: end of "busy", monotonic seconds.
    """

    answer: Answer
    at: float
    until: float

    def counts(self, now: float) -> bool:
        """Whether it still says something about the till; `now` in monotonic seconds."""
        if self.answer is Answer.READY:
            return now - self.at < READY_S
        if self.answer is Answer.BUSY:
            return now < self.until
        return True


def said(answer: Answer, for_s: float, now: float) -> Said:
    """An answer that came now.

    Args:
        for_s: how long "busy" shall count, seconds; at most `MAX_BUSY_S` do.
        now: monotonic seconds.
    """
    return Said(answer, now, now + min(max(for_s, 0.0), MAX_BUSY_S))


class Traffic:
    """Knows for how long nothing has been validated.

    Args:
        now: monotonic seconds. Before the first validation of a run the till counts as busy since then: nobody knows better.
    """

    __slots__ = ("_count", "_last")

    def __init__(self, now: float) -> None:
        self._count = 0
        self._last = now

    def note(self, count: int, now: float) -> None:
        """Notes how many validations there have been in this run."""
        if count != self._count:
            self._count, self._last = count, now

    def quiet_s(self, now: float) -> float:
        """Seconds since the last validation was noted."""
        return now - self._last


def require_consent(mode: Mode, given: Said | None, quiet_s: float, now: float, *, last_passed: bool) -> None:
    """Raises `Wait` unless the shop lets an installation begin.

    Args:
        mode: of the configuration.
        given: the last answer.
        quiet_s: how long nothing has been validated.
        now: monotonic seconds.
        last_passed: the time from which on nobody is asked has come, in this window.
    """
    if mode is Mode.NONE or last_passed:
        return
    least = QUIET_S
    if mode is Mode.ASK and given is not None and given.counts(now):
        if given.answer is Answer.READY:
            return
        if given.answer is Answer.BUSY:
            raise Wait("consent", f"the POS application is busy for {given.until - now:.0f} s", None)
        least = SHIFT_OVER_S
    if quiet_s < least:
        who = "the shift is not over" if least == SHIFT_OVER_S else "the till is in use"
        raise Wait("consent", f"{who}: it validated a license {quiet_s:.0f} s ago, {least} s must pass", None)
