"""When an installation may begin: midnight, clocks that go forward and back, frozen days, notice."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.ota.window import Terms, Wait, require_time
from common.openings import Calendar, Frozen, Window, next_opening

BERLIN = ZoneInfo("Europe/Berlin")
ALL = frozenset(range(7))
HORIZON = 2**40


def window(start: str, end: str, days: frozenset[int] = ALL, zone: ZoneInfo = BERLIN) -> Window:
    return Window(zone, days, time.fromisoformat(start), time.fromisoformat(end))


def at(text: str, zone: ZoneInfo | None = BERLIN, fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone or UTC, fold=fold).timestamp())


NIGHT = Calendar(BERLIN, window("23:00", "04:00", frozenset({0, 4})))


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("2026-11-30T22:59", False),  # a Monday
        ("2026-11-30T23:00", True),
        ("2026-12-01T00:00", True),
        ("2026-12-01T03:59", True),
        ("2026-12-01T04:00", False),
        ("2026-12-01T23:30", False),  # Tuesday is none of its days
        ("2026-12-05T01:00", True),  # it opened on Friday
        ("2026-12-06T01:00", False),
    ],
)
def test_a_window_across_midnight_belongs_to_the_day_on_which_it_opens(text: str, is_open: bool) -> None:
    assert NIGHT.open_at(at(text)) is is_open


@pytest.mark.parametrize(
    ("start", "end", "opens", "closes"),
    [
        # On 2027-03-28 the clock goes from 02:00 to 03:00, at 01:00 UTC.
        ("02:30", "04:00", "2027-03-28T01:00", "2027-03-28T02:00"),
        ("01:30", "02:30", "2027-03-28T00:30", "2027-03-28T01:00"),
        # On 2027-10-31 it goes from 03:00 back to 02:00, at 01:00 UTC.
        ("02:30", "04:00", "2027-10-31T00:30", "2027-10-31T01:00"),
        ("01:00", "02:00", "2027-10-30T23:00", "2027-10-31T00:00"),
        ("03:00", "04:00", "2027-10-31T02:00", "2027-10-31T03:00"),
    ],
)
def test_in_nights_of_shifted_clocks_the_reading_of_the_clock_decides(start: str, end: str, opens: str, closes: str) -> None:
    calendar = Calendar(BERLIN, window(start, end))
    opening, closing = at(opens, None), at(closes, None)
    assert not calendar.open_at(opening - 1) and calendar.open_at(opening)
    assert calendar.next_change(opening - 3000, to_open=True) == opening
    assert calendar.next_change(opening, to_open=False) == closing


def test_a_window_in_the_missing_hour_does_not_open_that_night() -> None:
    calendar = Calendar(BERLIN, window("02:00", "03:00"))
    assert calendar.next_change(at("2027-03-27T12:00"), to_open=True) == at("2027-03-29T02:00")


def test_a_window_in_the_repeated_hour_opens_twice_that_night() -> None:
    calendar = Calendar(BERLIN, window("02:00", "02:30"))
    first = calendar.next_change(at("2027-10-30T12:00"), to_open=True)
    assert first == at("2027-10-31T02:00")
    closed = calendar.next_change(first, to_open=False)
    assert closed == first + 1800
    assert calendar.next_change(closed, to_open=True) == at("2027-10-31T02:00", fold=1)


def test_a_frozen_day_shuts_the_rest_of_a_night_that_began_before_it() -> None:
    calendar = Calendar(BERLIN, window("22:00", "04:00"), (Frozen(date(2026, 12, 20), date(2027, 1, 6)),))
    assert calendar.open_at(at("2026-12-19T23:59"))
    assert not calendar.open_at(at("2026-12-20T00:00"))
    assert not calendar.open_at(at("2027-01-06T23:00"))
    assert calendar.next_change(at("2026-12-20T00:00"), to_open=True) == at("2027-01-07T00:00")
    with pytest.raises(Wait) as wait:
        require_time(Terms(0, HORIZON, 0), calendar, at("2026-12-24T23:00"), urgent=False)
    assert (wait.value.code, wait.value.until) == ("frozen", at("2027-01-07T00:00"))


def test_without_a_window_every_time_will_do_but_frozen_days() -> None:
    calendar = Calendar(BERLIN, None, (Frozen(date(2026, 12, 24), date(2026, 12, 24)),))
    assert calendar.open_at(at("2026-12-23T12:00"))
    assert calendar.next_change(at("2026-12-23T12:00"), to_open=False) == at("2026-12-24T00:00")


def test_a_calendar_that_never_opens_says_so() -> None:
    calendar = Calendar(BERLIN, None, (Frozen(date(2020, 1, 1), date(2099, 1, 1)),))
    assert calendar.next_change(at("2026-12-23T12:00"), to_open=True) is None
    with pytest.raises(Wait) as wait:
        require_time(Terms(0, HORIZON, 0), calendar, at("2026-12-24T23:00"), urgent=False)
    assert wait.value.until is None


TERMS = Terms(100, 10_000, 5_000)
ALWAYS = Calendar(ZoneInfo("UTC"))


@pytest.mark.parametrize(
    ("now", "urgent", "code", "until"),
    [
        (99, False, "not-before", 100),
        (99, True, "not-before", 100),
        (4_999, False, "notice", 5_000),
        (4_999, True, None, None),
        (5_000, False, None, None),
        (10_001, False, "ended", None),
        (10_001, True, "ended", None),
    ],
)
def test_an_administrator_is_bound_by_the_directive_but_not_by_the_notice(
    now: int, urgent: bool, code: str | None, until: int | None
) -> None:
    if code is None:
        require_time(TERMS, ALWAYS, now, urgent=urgent)
        return
    with pytest.raises(Wait) as wait:
        require_time(TERMS, ALWAYS, now, urgent=urgent)
    assert (wait.value.code, wait.value.until) == (code, until)


def test_the_directives_window_and_the_configured_one_must_both_be_open() -> None:
    terms = Terms(0, HORIZON, 0, window("01:00", "06:00", zone=ZoneInfo("America/New_York")))
    calendar = Calendar(BERLIN, window("04:00", "08:00"))
    assert not calendar.open_at(at("2026-11-30T08:30"))
    with pytest.raises(Wait) as wait:
        require_time(terms, calendar, at("2026-11-30T05:00"), urgent=False)
    # 01:00 in New York is 07:00 in Berlin.
    assert (wait.value.code, wait.value.until) == ("window", at("2026-11-30T07:00"))
    require_time(terms, calendar, at("2026-11-30T07:00"), urgent=False)
    require_time(terms, calendar, at("2026-11-30T03:00"), urgent=True)


def test_windows_that_are_never_open_together_have_no_opening() -> None:
    never = (Calendar(BERLIN, window("01:00", "02:00")), Calendar(BERLIN, window("03:00", "04:00")))
    assert next_opening(never, at("2026-11-30T05:00")) is None


zones = st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo", "UTC"])
clocks = st.builds(time, st.integers(0, 23), st.integers(0, 59))


@given(
    zones,
    st.frozensets(st.integers(0, 6), min_size=1),
    clocks,
    clocks,
    st.integers(1_780_000_000, 1_860_000_000),
    st.booleans(),
)
def test_between_now_and_the_next_change_nothing_changes(
    zone: str, days: frozenset[int], start: time, end: time, now: int, to_open: bool
) -> None:
    if start == end:
        return
    calendar = Calendar(ZoneInfo(zone), Window(ZoneInfo(zone), days, start, end))
    found = calendar.next_change(now, to_open=to_open)
    assert found is not None and calendar.open_at(found) is to_open
    if found > now:
        assert calendar.open_at(found - 1) is not to_open
        span = found - now
        assert all(calendar.open_at(now + span * part // 97) is not to_open for part in range(97))
    assert found - now <= 16 * 86_400


@given(zones, clocks, clocks, st.integers(1_780_000_000, 1_860_000_000))
def test_open_says_what_a_person_reads_off_the_clock(zone: str, start: time, end: time, now: int) -> None:
    if start == end:
        return
    read = (datetime.fromtimestamp(now, UTC) + (datetime.fromtimestamp(now, ZoneInfo(zone)).utcoffset() or timedelta())).time()
    inside = start <= read < end if start < end else read >= start or read < end
    assert Calendar(ZoneInfo(zone), Window(ZoneInfo(zone), ALL, start, end)).open_at(now) is inside


def test_a_window_reads_as_it_was_written() -> None:
    assert str(window("23:00", "04:00", frozenset({0, 4}))) == "23:00 to 04:00 Europe/Berlin mon, fri"
    assert str(window("01:00", "04:00")) == "01:00 to 04:00 Europe/Berlin every day"
