"""A time as people type it is a number of seconds, or an error that shows how to write one."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.claims import MAX_TIME
from server.base.times import parse_time, told, zone_of

NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("+30d", NOW + 30 * 86_400),
        ("-2h", NOW - 7200),
        ("+5s", NOW + 5),
        ("+5m", NOW + 300),
        ("+1w", NOW + 604_800),
        ("2027-01-31", 1_801_353_600),
        ("2027-01-31T12:00:00Z", 1_801_396_800),
        ("2027-01-31T12:00:00", 1_801_396_800),
        ("2027-01-31T13:00:00+01:00", 1_801_396_800),
        ("1800000000", 1_800_000_000),
        ("0", 0),
    ],
)
def test_each_form(text: str, expected: int) -> None:
    assert parse_time(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "+1y", "1d", "+-1d", "+1.5d", "2027-13-01", "2027-02-30", "-5", "1e9", " now"]
)
def test_another_form_is_told_the_right_ones(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time; write \+30d"):
        parse_time(text, NOW)


@pytest.mark.parametrize("text", ["-999999999w", "+999999999w", "1969-12-31", str(MAX_TIME + 1), "0001-01-01"])
def test_times_out_of_bounds_are_told(text: str) -> None:
    with pytest.raises(ValueError, match="before 1970 or after 9999"):
        parse_time(text, NOW)


ENDS = [
    ("2027-01-31", "UTC", 1_801_440_000),
    ("2027-01-31", "Europe/Berlin", 1_801_436_400),
    ("2027-01-31", "America/New_York", 1_801_458_000),
    ("2027-07-31", "Europe/Berlin", 1_817_071_200),  # summer time
    ("2027-03-28", "Europe/Berlin", 1_806_271_200),  # a day of 23 hours
    ("2028-02-29", "UTC", 1_835_481_600),
    ("2027-12-31", "Pacific/Kiritimati", 1_830_247_200),
    ("2027-01-31T12:00:00", "Europe/Berlin", 1_801_393_200),
    ("2027-01-31T12:00:00Z", "Europe/Berlin", 1_801_396_800),
    ("+1d", "Europe/Berlin", NOW + 86_400),
]


@pytest.mark.parametrize(("text", "zone", "expected"), ENDS)
def test_what_ends_on_a_day_ends_with_that_day(text: str, zone: str, expected: int) -> None:
    assert parse_time(text, NOW, zone_of(zone), ends=True) == expected


def test_the_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert parse_time("2027-01-31", NOW, zone_of("local"), ends=True) == 1_801_407_600
        assert told(1_801_407_600, zone_of("local")) == "2027-01-31 15:00:00Z (2027-02-01 00:00:00 JST)"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert told(1_801_436_400, zone_of("Europe/Berlin")) == "2027-01-31 23:00:00Z (2027-02-01 00:00:00 Europe/Berlin)"
    assert told(1_801_440_000, zone_of("UTC")) == "2027-02-01 00:00:00Z"


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "Europe"])
def test_an_unknown_zone_is_told(name: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone of this machine"):
        zone_of(name)


@given(st.text(max_size=12) | st.text("0123456789-+:TZdhms", max_size=14))
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_time(text, NOW) <= MAX_TIME
