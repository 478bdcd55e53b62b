"""When installations may begin, listed ahead: over both changes of the clock, midnight and frozen days."""

from datetime import UTC, date, datetime, time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.openings import MOST_OPENINGS, Calendar, Frozen, Opening, Window, openings

BERLIN, SYDNEY = ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Sydney")
ALL = frozenset(range(7))
DAY = 86_400


def at(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp())


def calendar(start: str, end: str, days: frozenset[int] = ALL, zone: ZoneInfo = BERLIN, *frozen: Frozen) -> Calendar:
    return Calendar(zone, Window(zone, days, time.fromisoformat(start), time.fromisoformat(end)), frozen)


def listed(found: tuple[Opening, ...], zone: ZoneInfo = BERLIN) -> list[tuple[str, str, float]]:
    """Begin and end by the clock on the wall, and the hours between them."""
    rows = []
    for each in found:
        assert each.closes is not None
        walls = [f"{datetime.fromtimestamp(moment, zone):%m-%d %H:%M}" for moment in (each.opens, each.closes)]
        rows.append((walls[0], walls[1], (each.closes - each.opens) / 3600))
    return rows


def test_a_window_over_midnight_opens_each_day_that_it_names() -> None:
    days = calendar("22:00", "04:00", frozenset({0, 4}))  # Monday and Friday
    found = openings((days,), at("2026-11-30T12:00"), at("2026-12-08T12:00"))
    assert listed(found) == [
        ("11-30 22:00", "12-01 04:00", 6.0), ("12-04 22:00", "12-05 04:00", 6.0), ("12-07 22:00", "12-08 04:00", 6.0)
    ]  # fmt: skip


def test_what_is_open_now_begins_now_and_what_opens_at_the_end_is_left_out() -> None:
    now = at("2026-12-01T01:30")
    found = openings((calendar("22:00", "04:00"),), now, at("2026-12-01T22:00"))
    assert found == (Opening(now, at("2026-12-01T04:00")),)


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        ("22:00", "04:00", [("03-27 22:00", "03-28 04:00", 6.0), ("03-28 22:00", "03-29 04:00", 5.0)]),
        ("02:00", "03:00", [("03-28 02:00", "03-28 03:00", 1.0), ("03-30 02:00", "03-30 03:00", 1.0)]),
        ("02:30", "03:30", [("03-28 02:30", "03-28 03:30", 1.0), ("03-29 03:00", "03-29 03:30", 0.5)]),
    ],
    ids=["a shorter night", "the missing hour", "half of it"],
)
def test_clocks_go_forward(start: str, end: str, rows: list[tuple[str, str, float]]) -> None:
    found = openings((calendar(start, end),), at("2026-03-27T12:00"), at("2026-03-30T12:00"))
    assert listed(found)[:2] == rows


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        ("22:00", "04:00", [("10-24 22:00", "10-25 04:00", 7.0)]),
        ("02:00", "03:00", [("10-25 02:00", "10-25 03:00", 2.0)]),
        ("02:15", "02:45", [("10-25 02:15", "10-25 02:45", 0.5), ("10-25 02:15", "10-25 02:45", 0.5)]),
    ],
    ids=["a longer night", "the repeated hour", "within it: twice"],
)
def test_clocks_go_back(start: str, end: str, rows: list[tuple[str, str, float]]) -> None:
    found = openings((calendar(start, end),), at("2026-10-24T12:00"), at("2026-10-25T12:00"))
    assert listed(found) == rows


def test_the_southern_half_changes_its_clocks_at_other_times() -> None:
    found = openings((calendar("23:00", "05:00", zone=SYDNEY),), at("2026-10-03T12:00", SYDNEY), at("2026-10-04T12:00", SYDNEY))
    assert listed(found, SYDNEY) == [("10-03 23:00", "10-04 05:00", 5.0)]


def test_a_frozen_day_shuts_the_part_after_midnight_too() -> None:
    frozen = Frozen(date(2026, 12, 24), date(2026, 12, 25))
    found = openings((calendar("22:00", "04:00", ALL, BERLIN, frozen),), at("2026-12-23T12:00"), at("2026-12-26T12:00"))
    assert listed(found) == [("12-23 22:00", "12-24 00:00", 2.0), ("12-26 00:00", "12-26 04:00", 4.0)]


def test_without_a_window_it_is_open_between_frozen_days() -> None:
    free = Calendar(UTC, None, (Frozen(date(2026, 12, 24), date(2026, 12, 24)),))
    begin, frozen = at("2026-12-23T00:00", ZoneInfo("UTC")), at("2026-12-24T00:00", ZoneInfo("UTC"))
    assert openings((free,), begin, begin + 30 * DAY) == (Opening(begin, frozen), Opening(frozen + DAY, None))
    assert openings((Calendar(),), begin, begin + DAY) == (Opening(begin, None),)


def test_all_calendars_must_be_open() -> None:
    found = openings((calendar("22:00", "04:00"), calendar("23:00", "03:00", zone=ZoneInfo("Europe/London"))),
                     at("2026-12-01T12:00"), at("2026-12-02T12:00"))  # fmt: skip
    assert listed(found) == [("12-02 00:00", "12-02 04:00", 4.0)]
    assert (
        openings((calendar("01:00", "02:00"), calendar("03:00", "04:00")), at("2026-12-01T12:00"), at("2027-03-01T12:00")) == ()
    )


def test_there_is_a_most() -> None:
    assert len(openings((calendar("01:00", "02:00"),), at("2026-01-01T00:00"), at("2046-01-01T00:00"))) == MOST_OPENINGS


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 23), st.integers(0, 23), st.sets(st.integers(0, 6), min_size=1), st.integers(0, 364),
    st.sampled_from(["Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns", "Africa/Casablanca", "UTC"]),
)  # fmt: skip
def test_each_opening_is_open_at_both_ends_and_none_is_left_out(
    start: int, end: int, days: set[int], day: int, name: str
) -> None:
    zone = ZoneInfo(name)
    window = Window(zone, frozenset(days), time(start, 30), time(end, 15))
    begin = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) + day * DAY
    one = Calendar(zone, window)
    found = openings((one,), begin, begin + 8 * DAY)
    for each in found:
        assert each.closes is not None and each.opens < each.closes
        assert one.open_at(each.opens) and one.open_at(each.closes - 60) and not one.open_at(each.closes)
    for moment in range(begin, begin + 8 * DAY, 900):
        assert one.open_at(moment) is any(each.opens <= moment < (each.closes or moment + 1) for each in found)
