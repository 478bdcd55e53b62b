"""`ota windows`: when updates may begin, from the agent's configuration, by the clock on the wall."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from agentd.base.config.config import parse_config
from agentd.base.configstatus import ConfigStatus
from agentd.telemetry.configview import config_view
from cli.openingtimes import calendar_of, openings_text, shown_openings
from common.zones import UnknownZone

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
NIGHT = 'window = { zone = "Europe/Berlin", start = "22:00", end = "04:00", days = ["sat"] }\n'


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp())


def reply(text: str) -> dict[str, Any]:
    return config_view(ConfigStatus(parse_config(text, "config.toml", user=int, group=int)), {})


def test_the_window_and_frozen_days_in_force_are_listed() -> None:
    calendar = calendar_of(reply(f'[updates]\n{NIGHT}freeze = ["2026-12-27", "2026-12-31..2027-01-06"]\n'))
    found = shown_openings(calendar, at("2026-12-18T12:00"), 25)
    assert found == {
        "zone": "Europe/Berlin",
        "window": "22:00 to 04:00 Europe/Berlin sat",
        "openings": [
            {"opens": at("2026-12-19T22:00"), "closes": at("2026-12-20T04:00")},
            {"opens": at("2026-12-26T22:00"), "closes": at("2026-12-27T00:00")},
            {"opens": at("2027-01-09T22:00"), "closes": at("2027-01-10T04:00")},
        ],
    }
    text = openings_text(found, calendar.zone, BERLIN, 25)
    assert "Sat 2026-12-19 22:00 +0100" in text and "Sun 2026-12-27 00:00 +0100" in text
    assert "another time zone" not in text and "a directive's own window" in text


@pytest.mark.parametrize(("day", "closes"), [("2026-03-28", "04:00 +0200"), ("2026-10-24", "04:00 +0100")])
def test_a_night_in_which_clocks_change_is_shown_by_the_wall(day: str, closes: str) -> None:
    calendar = calendar_of(reply(f"[updates]\n{NIGHT}"))
    text = openings_text(shown_openings(calendar, at(f"{day}T12:00"), 1), calendar.zone, BERLIN, 1)
    assert f"Sat {day} 22:00" in text and closes in text


def test_a_machine_in_another_zone_is_told() -> None:
    calendar = calendar_of(reply(f"[updates]\n{NIGHT}"))
    found = shown_openings(calendar, at("2026-12-18T12:00"), 7)
    assert "this machine's own clock shows another time zone than Europe/Berlin" in openings_text(
        found, calendar.zone, NEW_YORK, 7
    )


def test_without_a_window_any_time_will_do_and_nothing_within_the_days_is_said() -> None:
    found = shown_openings(calendar_of(reply("")), 1000, 7)
    assert found == {"zone": "UTC", "window": None, "openings": [{"opens": 1000, "closes": None}]}
    frozen = calendar_of(reply('[updates]\nfreeze = ["1970-01-01..1970-06-01"]\n'))
    assert "not within 7 days" in openings_text(shown_openings(frozen, 1000, 7), frozen.zone, None, 7)


def test_a_zone_that_has_gone_is_said() -> None:
    shown = reply(f"[updates]\n{NIGHT}")
    window = next(entry for entry in shown["entries"] if entry["key"] == "updates.window")
    window["value"] = {**window["value"], "zone": "Mars/Olympus"}
    with pytest.raises(UnknownZone, match="Mars/Olympus"):
        calendar_of(shown)
