"""Parses times as people type them. Pure."""

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

from contracts.claims import MAX_TIME

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_RELATIVE = re.compile(r"([+-])(\d{1,9})([smhdw])")


def zone_of(name: str) -> tzinfo:
    """The time zone with this name: `UTC`, `local` for this machine's, or one of the IANA's such as `Europe/Berlin`.

    Raises:
        ValueError: there is no such zone.
    """
    if name == "UTC":
        return UTC
    if name == "local":
        return _Local()
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ValueError(
            f"{name!r} is not a time zone of this machine; write UTC, local or a name such as Europe/Berlin (package tzdata)"
        ) from None


class _Local(tzinfo):
    """This machine's zone, for dates of any season."""

    def __str__(self) -> str:
        return "local"

    def utcoffset(self, moment: datetime | None) -> timedelta:
        offset = None if moment is None else moment.replace(tzinfo=None).astimezone().utcoffset()
        return offset or timedelta(0)

    def dst(self, _moment: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, moment: datetime | None) -> str:
        return "UTC" if moment is None else moment.replace(tzinfo=None).astimezone().tzname() or "local"


def parse_time(text: str, now: int, zone: tzinfo = UTC, *, ends: bool = False) -> int:
    """Seconds since 1970 UTC of `+30d`, `-2h`, `now`, `2027-01-31`, `2027-01-31T12:00:00Z` or `1800000000`.

    Args:
        text: as typed.
        now: seconds since 1970 UTC.
        zone: of a date, and of a time without an offset.
        ends: whether something ends then: a date means the end of that day, else its begin.

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
            moment = _moment(text, ends)
        except (ValueError, OverflowError):
            raise ValueError(f"{text!r} is not a time; write +30d, -2h, now, 2027-01-31 or 2027-01-31T12:00:00Z") from None
        try:
            value = int((moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).timestamp())
        except (ValueError, OverflowError):
            value = -1
    if not 0 <= value <= MAX_TIME:
        raise ValueError(f"{text!r} is before 1970 or after 9999")
    return value


def _moment(text: str, ends: bool) -> datetime:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return datetime.fromisoformat(text)
    # A license ends before its `exp`: the end of a day is the first moment of the next one.
    return datetime.combine(day + timedelta(days=1) if ends else day, time())


def parse_duration(text: str) -> int:
    """Seconds of `30d`, `12h` or `52w`.

    Raises:
        ValueError: the text has another form.
    """
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if found is None or not int(found[1]):
        raise ValueError(f"{text!r} is not a duration; write 30d, 12h or 52w")
    return int(found[1]) * _UNITS[found[2]]


def told(seconds: int, zone: tzinfo) -> str:
    """A moment for people, in UTC and in a zone."""
    utc = datetime.fromtimestamp(seconds, UTC)
    if zone is UTC:
        return f"{utc:%Y-%m-%d %H:%M:%SZ}"
    # The library's own arithmetic, because `_Local` knows offsets of local times only.
    there = utc.astimezone() if isinstance(zone, _Local) else utc.astimezone(zone)
    name = there.tzname() if isinstance(zone, _Local) else str(zone)
    return f"{utc:%Y-%m-%d %H:%M:%SZ} ({there:%Y-%m-%d %H:%M:%S} {name})"
