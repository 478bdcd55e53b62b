"""Writes times for people: UTC first, then the local zone where it is another one. Performs no IO."""

import time

from cli.render import in_words, utc


def moment(seconds: int) -> str:
    """A time in UTC and in the zone of this process (TZ)."""
    there = time.localtime(seconds)
    if there.tm_gmtoff == 0:
        return utc(seconds)
    same_day = time.strftime("%Y-%m-%d", there) == time.strftime("%Y-%m-%d", time.gmtime(seconds))
    return f"{utc(seconds)} ({time.strftime('%H:%M:%S %Z' if same_day else '%Y-%m-%d %H:%M:%S %Z', there)})"


def when(seconds: int, now: int) -> str:
    """As `moment`, and how far that is from another time."""
    distance = f"in {in_words(seconds - now)}" if seconds > now else f"{in_words(now - seconds)} ago"
    return f"{moment(seconds)}, {distance}"
