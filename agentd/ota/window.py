"""Decides when an installation may begin: the window, days on which nothing may change, and the notice. Pure.

`common.openings` decides when a window is open.
"""

from dataclasses import dataclass

from common.openings import Calendar, Window, next_opening


class Wait(Exception):
    """An installation may not begin yet. Not an error: the runner asks again.

    Attributes:
        code: `not-before`, `notice`, `window`, `frozen`, `ended` or `consent`.
        text: for people.
        until: seconds since 1970 UTC; None if nobody knows.
    """

    def __init__(self, code: str, text: str, until: int | None) -> None:
        super().__init__(text)
        self.code, self.text, self.until = code, text, until


@dataclass(frozen=True, slots=True)
class Terms:
    """What a directive and its arrival say about when it may be installed. Times are seconds since 1970 UTC.

    Attributes:
        not_before, not_after: hold whoever asks.
        notice_until: the later of the directive's notice and this machine's.
        window: of the directive; None leaves it to the configuration.
    """

    not_before: int
    not_after: int
    notice_until: int
    window: Window | None = None


def require_time(terms: Terms, calendar: Calendar, now: int, *, urgent: bool) -> None:
    """Raises `Wait` unless an installation may begin now, as far as time says.

    Args:
        terms: of the order.
        calendar: of the configuration. Where the directive has a window too, both must be open.
        now: seconds since 1970 UTC.
        urgent: an administrator wants it now: only the directive's own limits hold.
    """
    if now > terms.not_after:
        raise Wait("ended", "the directive has ended", None)
    if now < terms.not_before:
        raise Wait("not-before", "the directive begins later", terms.not_before)
    if urgent:
        return
    if now < terms.notice_until:
        raise Wait("notice", "the notice period has not ended", terms.notice_until)
    both = (calendar,) if terms.window is None else (calendar, Calendar(calendar.zone, terms.window))
    for each in both:
        if not each.open_at(now):
            code, text = (
                ("frozen", "no update may begin on a frozen day") if each.frozen_at(now) else ("window", "the window is closed")
            )
            raise Wait(code, text, next_opening(both, now))
