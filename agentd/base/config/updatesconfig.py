"""The section `[updates]`: its keys, their bounds and the rules that span them. Reads the files of time zones, nothing else."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date, time
from typing import Any

from common.openings import DAYS
from common.zones import UnknownZone, zone_of
from settings.sections import Key, Keys, Sections
from settings.values import BadValue, boolean, integer, one_of

MAX_FROZEN = 64
MAX_TRIAL_S = 1200
"""Below the deadline of the trial as a whole (`agentd.ota.table.DEADLINES`), so that the checks that fail are the reason."""
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_RANGE = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:\.\.([0-9]{4}-[0-9]{2}-[0-9]{2}))?")


@dataclass(frozen=True, slots=True)
class WindowConfig:
    """When an installation may begin, by the clock on the wall of a time zone."""

    zone: str
    start: time
    end: time
    days: tuple[str, ...] = DAYS


@dataclass(frozen=True, slots=True)
class UpdatesConfig:
    """`[updates]`: when and how updates are installed.

    Without `enabled` they are, once root has written update-trust.json. `freeze` holds first and last day of each range.
    """

    enabled: bool | None = None
    window: WindowConfig | None = None
    freeze: tuple[tuple[date, date], ...] = ()
    notice_h: int = 48
    rate_kib_s: int | None = None
    consent: str = "ask"
    consent_last: time | None = None
    trial_s: int = 180
    test_bench: bool = False


def clock(value: Any) -> time:
    """Reads a time of day."""
    if not isinstance(value, str) or not _CLOCK.fullmatch(value):
        raise BadValue('must be a time of day such as "23:00"')
    return time.fromisoformat(value)


def _zone(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadValue('must be a time zone such as "Europe/Berlin"')
    try:
        return zone_of(value).key
    except UnknownZone as error:
        raise BadValue(str(error)) from None


def _days(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(each in DAYS for each in value) or len(set(value)) != len(value):
        raise BadValue(f"must be a list of days, each once: {', '.join(DAYS)}")
    return tuple(value)


_WINDOW = {"zone": _zone, "start": clock, "end": clock, "days": _days}


def window(value: Any) -> WindowConfig:
    """Reads a table such as `{zone = "Europe/Berlin", start = "23:00", end = "05:00", days = ["mon"]}`."""
    if not isinstance(value, Mapping):
        raise BadValue('must be a table such as { zone = "Europe/Berlin", start = "23:00", end = "05:00" }')
    known = [field.name for field in fields(WindowConfig)]
    if unknown := [name for name in value if name not in known]:
        raise BadValue(f"has the unknown key '{unknown[0]}'; known are {', '.join(known)}")
    if missing := [name for name in ("zone", "start", "end") if name not in value]:
        raise BadValue(f"lacks '{missing[0]}'")
    found: dict[str, Any] = {}
    for name, each in value.items():
        try:
            found[name] = _WINDOW[name](each)
        except BadValue as bad:
            raise BadValue(f"has a key '{name}' that {bad}") from None
    made = WindowConfig(**found)
    if made.start == made.end:
        raise BadValue("must have a start and an end that differ; without the window any time of the day will do")
    return made


def freeze(value: Any) -> tuple[tuple[date, date], ...]:
    """Reads a list of days and ranges of days such as `["2026-12-20..2027-01-06", "2027-05-01"]`."""
    form = 'must be a list of days or ranges of days such as "2026-12-20..2027-01-06"'
    if not isinstance(value, list) or len(value) > MAX_FROZEN:
        raise BadValue(f"{form}, at most {MAX_FROZEN}")
    found = []
    for each in value:
        parts = _RANGE.fullmatch(each) if isinstance(each, str) else None
        if parts is None:
            raise BadValue(f"{form}; {each!r} is neither")
        try:
            first = date.fromisoformat(parts[1])
            last = date.fromisoformat(parts[2]) if parts[2] else first
        except ValueError:
            raise BadValue(f"has {each!r}, and there is no such day") from None
        if last < first:
            raise BadValue(f"has {each!r}, which ends before it begins")
        found.append((first, last))
    return tuple(found)


KEYS: Keys = {
    "enabled": Key(boolean),
    "window": Key(window),
    "freeze": Key(freeze),
    "notice_h": Key(integer(0, 24 * 60)),
    "rate_kib_s": Key(integer(1, 2**24)),
    "consent": Key(one_of("ask", "quiet", "none")),
    "consent_last": Key(clock),
    "trial_s": Key(integer(1, MAX_TRIAL_S)),
    "test_bench": Key(boolean),
}


def check(found: Sections, values: Mapping[str, Any]) -> None:
    """Notes what is wrong with keys that do not fit together."""
    last, given = values.get("consent_last"), values.get("window")
    if last is None:
        return
    if given is None:
        found.problem("'consent_last' in [updates] needs a 'window', within which it lies; add one, or remove the key")
        return
    inside = given.start <= last < given.end if given.start < given.end else last >= given.start or last < given.end
    if not inside:
        found.problem(f"'consent_last' in [updates] must lie within the window, {given.start:%H:%M} to {given.end:%H:%M}")
