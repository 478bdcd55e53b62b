"""A time as people type it is a number of seconds, or an error that shows how to write one."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.claims import MAX_TIME
from server.cli.times import parse_time

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


@given(st.text(max_size=12) | st.text("0123456789-+:TZdhms", max_size=14))
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_time(text, NOW) <= MAX_TIME
