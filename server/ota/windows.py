"""Reads a deployment window as people write it: `mon-fri 22:00-05:00 Europe/Berlin`. Pure."""

import re

from contracts.directive import Day, DeploymentWindow

_FORM = re.compile(r"(?P<days>[a-z,-]+) (?P<start>\d\d:\d\d)-(?P<end>\d\d:\d\d) (?P<zone>\S{1,64})")
_DAYS = tuple(Day)


def parse_window(text: str) -> DeploymentWindow:
    """The window that a text describes.

    Args:
        text: days, times and zone. Days are `daily`, names, and ranges such as `fri-mon`, joined by commas.

    Raises:
        ValueError: it has another form.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a window; write it as 'mon-fri 22:00-05:00 Europe/Berlin', or 'daily ...'")
    days = {day for part in found["days"].split(",") for day in _days_of(part)}
    chosen = tuple(day for day in _DAYS if day in days)
    return DeploymentWindow(zone=found["zone"], days=chosen, start=found["start"], end=found["end"])


def _days_of(part: str) -> tuple[Day, ...]:
    if part == "daily":
        return _DAYS
    first, dash, last = part.partition("-")
    try:
        begin, end = _DAYS.index(Day(first)), _DAYS.index(Day(last if dash else first))
    except ValueError:
        raise ValueError(f"{part!r} is not a day or a range of days; the days are {', '.join(_DAYS)}") from None
    return tuple(_DAYS[number % 7] for number in range(begin, end + 1 if begin <= end else end + 8))
