"""Parses times as people type them. Pure."""

import re
from datetime import UTC, datetime

from contracts.claims import MAX_TIME

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_RELATIVE = re.compile(r"([+-])(\d{1,9})([smhdw])")


def parse_time(text: str, now: int) -> int:
    """Seconds since 1970 UTC of `+30d`, `-2h`, `now`, `2027-01-31`, `2027-01-31T12:00:00Z` or `1800000000`.

    Raises:
        ValueError: the text has another form, or the time is before 1970 or after 9999.
    """
    relative = _RELATIVE.fullmatch(text)
    if text == "now":
        value = now
    elif relative is not None:
        value = now + int(relative[1] + relative[2]) * _UNITS[relative[3]]
    elif text.isascii() and text.isdigit():
        value = int(text)
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a time; write +30d, -2h, now, 2027-01-31 or 2027-01-31T12:00:00Z") from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        value = int(moment.timestamp())
    if not 0 <= value <= MAX_TIME:
        raise ValueError(f"{text!r} is before 1970 or after 9999")
    return value
