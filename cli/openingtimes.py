"""Says when updates may begin on this machine, from the configuration that the agent shows. Reads the files of time zones."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, tzinfo
from typing import Any

from tabulate import tabulate

from common.openings import DAYS, Calendar, Frozen, Window, openings
from common.zones import zone_of

DAY_S = 86_400


def calendar_of(reply: Mapping[str, Any]) -> Calendar:
    """The calendar in force, from the reply to `config_show`.

    Raises:
        UnknownZone: this machine does not know the window's time zone any more.
    """
    values = {entry["key"]: entry["value"] for entry in reply["entries"]}
    window = values.get("updates.window")
    frozen = tuple(_frozen(each) for each in values.get("updates.freeze") or ())
    if window is None:
        return Calendar(UTC, None, frozen)
    zone = zone_of(window["zone"])
    days = frozenset(DAYS.index(day) for day in window["days"])
    start, end = (time.fromisoformat(window[name]) for name in ("start", "end"))
    return Calendar(zone, Window(zone, days, start, end), frozen)


def _frozen(text: str) -> Frozen:
    first, _, last = text.partition("..")
    return Frozen(date.fromisoformat(first), date.fromisoformat(last or first))


def shown_openings(calendar: Calendar, now: int, days: int) -> dict[str, Any]:
    """What `ota windows` prints as JSON.

    Args:
        calendar: in force.
        now: seconds since 1970 UTC.
        days: how far ahead.
    """
    window = calendar.window
    found = openings((calendar,), now, now + days * DAY_S)
    return {
        "zone": "UTC" if window is None else window.zone.key,
        "window": None if window is None else str(window),
        "openings": [{"opens": each.opens, "closes": each.closes} for each in found],
    }


def openings_text(found: Mapping[str, Any], zone: tzinfo, local: tzinfo | None, days: int) -> str:
    """The same for people, by the clock on the wall.

    Args:
        found: of `shown_openings`.
        zone: of the window.
        local: this machine's own; None for that of its settings.
        days: how far ahead was looked.
    """
    rows = [(_wall(each["opens"], zone), _wall(each["closes"], zone)) for each in found["openings"]]
    window = found["window"] or "any time, but for frozen days (UTC)"
    lines = [f"updates may begin: {window}", ""]
    lines.append(str(tabulate(rows, headers=("opens", "closes"), disable_numparse=True)) if rows else f"not within {days} days")
    if found["window"] and any(_differs(each["opens"], zone, local) for each in found["openings"]):
        lines += ["", f"this machine's own clock shows another time zone than {found['zone']}"]
    lines += ["", "a directive's own window and notice narrow this ('license-agent-cli ota status')"]
    return "\n".join(lines)


def _wall(moment: int | None, zone: tzinfo) -> str:
    return "-" if moment is None else f"{datetime.fromtimestamp(moment, zone):%a %Y-%m-%d %H:%M %z}"


def _differs(moment: int, zone: tzinfo, local: tzinfo | None) -> bool:
    here = datetime.fromtimestamp(moment, UTC).astimezone(local)
    return here.utcoffset() != datetime.fromtimestamp(moment, zone).utcoffset()
