"""What is unusual for a fleet: on made-up series, and on ten weeks of one that are replayed."""

import csv
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest

from server.fleet.monitoring.anomalies import WEEKS, chance_of_count, chance_of_share, distance, past, times, usual
from server.fleet.monitoring.judgement import Judgement, Standings, judge, needed
from server.fleet.monitoring.latency import NONE, bucket_of
from server.fleet.monitoring.rules import Kind, Latencies, Shares, Thresholds
from server.fleet.monitoring.series import Point
from server.fleet.monitoring.standings import Verdict
from tests.vectors.make_fleet_series import ALWAYS_ON, BEGIN, STEP_S, TILLS, rows

HOUR_S, DAY_S, WEEK_S = 3600, 86_400, 604_800
MONDAY = int(datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp())
"""Noon of a Monday."""
ALONE = Thresholds(error_rate=Shares(), latency_p95_s=Latencies(), window=1, raise_after=1, clear_after=1)
"""Only the past counts, and each judgment at once."""
FIXTURE = Path(__file__).parents[3] / "vectors" / "fleet-series.csv"
BERLIN = ZoneInfo("Europe/Berlin")


def point(contacts: int, failed: int = 0, seconds: float = 0.02, devices: int | None = None, late: int | None = None) -> Point:
    counts = list(NONE)
    counts[bucket_of(seconds)] = contacts
    return Point(contacts, failed, tuple(counts), devices, late)


def made(value: Callable[[int], Point | None], weeks: int = 9, end: int = MONDAY) -> dict[int, Point]:
    """A series of whole hours up to a time, of what a function gives for each."""
    times_ = range(end - weeks * WEEK_S, end + HOUR_S, HOUR_S)
    return {at: found for at in times_ if (found := value(at)) is not None}


def odd(
    series: dict[int, Point], at: int = MONDAY, thresholds: Thresholds = ALONE, zone: tzinfo = UTC, step_s: int = HOUR_S
) -> set[Kind]:
    found = judge(series, thresholds, zone, {}, at, step_s).found
    return {each.kind for each in found if each.verdict is Verdict.BAD}


def wobble(at: int) -> int:
    """A few contacts more or less, and not by a pattern of weeks."""
    return (at // HOUR_S * 7919) % 41 - 20


def test_an_even_series_has_nothing_unusual() -> None:
    series = made(lambda at: point(1000 + wobble(at), 3, devices=2000, late=20))
    assert all(odd(series, MONDAY - n * HOUR_S) == set() for n in range(48))


@pytest.mark.parametrize(
    ("last", "kinds"),
    [
        (point(600, 2, devices=2000, late=20), {Kind.FEW_CONTACTS}),
        (point(0, 0, devices=2000, late=20), {Kind.FEW_CONTACTS}),
        (point(1600, 5, devices=2000, late=20), {Kind.MANY_CONTACTS}),
        (point(1000, 100, devices=2000, late=20), {Kind.ODD_ERROR_RATE}),
        (point(1000, 3, 2.0, devices=2000, late=20), {Kind.ODD_LATENCY}),
        (point(1000, 3, devices=2000, late=500), {Kind.ODD_LATE}),
        (point(1000, 0, 0.001, devices=2000, late=0), set()),  # better than usual
        (point(940, 8, 0.04, devices=2000, late=60), set()),  # near the usual
    ],
)
def test_a_spike_is_unusual_in_the_direction_that_matters(last: Point, kinds: set[Kind]) -> None:
    series = made(lambda at: point(1000 + wobble(at), 3, devices=2000, late=20))
    series[MONDAY] = last
    assert odd(series) == kinds


def test_a_shift_of_level_is_unusual_until_it_is_the_usual() -> None:
    shift = MONDAY - 5 * WEEK_S
    series = made(lambda at: point((1000 if at < shift else 500) + wobble(at) // 4), weeks=14)
    found = [odd(series, shift + n * WEEK_S + HOUR_S) for n in range(6)]
    # For half of the weeks that are compared, it is; a first change of the median comes with the fifth week at the latest.
    assert found[:4] == [{Kind.FEW_CONTACTS}] * 4
    assert found[5] == set()


def test_a_slow_drift_is_not_unusual_which_is_what_thresholds_are_for() -> None:
    def drifting(at: int) -> Point:
        weeks = (at - MONDAY) / WEEK_S + 20
        return point(1000 + wobble(at), round(1000 * 0.002 * weeks))

    series = made(drifting, weeks=20)
    assert odd(series) == set()
    by_threshold = msgspec.structs.replace(ALONE, error_rate=Shares(0.03, 0.2))
    assert odd(series, thresholds=by_threshold) == {Kind.ERROR_RATE}


def test_nights_and_weekends_are_usual_and_a_day_that_is_like_another_one_is_not() -> None:
    def shop(at: int) -> Point:
        there = datetime.fromtimestamp(at, UTC)
        is_open = there.weekday() < 6 and 8 <= there.hour < 20
        return point((1000 if is_open else 80) + wobble(at) // 2, devices=1200, late=100 if is_open else 1100)

    series = made(shop)
    assert all(odd(series, MONDAY - n * HOUR_S) == set() for n in range(2 * 168))
    series[MONDAY] = shop(MONDAY - DAY_S)  # like a Sunday
    assert odd(series) == {Kind.FEW_CONTACTS, Kind.ODD_LATE}


@pytest.mark.parametrize("change", [datetime(2026, 3, 29, tzinfo=BERLIN), datetime(2026, 10, 25, tzinfo=BERLIN)])
def test_a_dst_change_moves_nothing(change: datetime) -> None:
    """Shops open by local time: on the days around a change, and in the weeks behind it."""

    def shop(at: int) -> Point:
        hour = datetime.fromtimestamp(at, BERLIN).hour
        return point(1000 if 8 <= hour < 20 else 100)

    begin = int(change.timestamp())
    series = made(shop, weeks=14, end=begin + 5 * WEEK_S)
    hours = [*range(begin - DAY_S, begin + 2 * DAY_S, HOUR_S), *range(begin + WEEK_S, begin + WEEK_S + DAY_S, HOUR_S)]
    assert [odd(series, at, zone=BERLIN) for at in hours] == [set()] * len(hours)
    # By UTC, opening hours would be unusual, and not only once.
    assert sum(bool(odd(series, at, zone=UTC)) for at in hours) >= 2


def test_each_week_is_compared_at_the_same_local_time() -> None:
    at = int(datetime(2026, 10, 26, 9, tzinfo=BERLIN).timestamp())  # the day after the change
    middles = [week[1] for week in times(at, BERLIN, HOUR_S, HOUR_S)]
    there = {datetime.fromtimestamp(each, BERLIN).strftime("%a %H:%M") for each in middles}
    assert (there, len(middles)) == ({"Mon 09:00"}, WEEKS)


def test_gaps_are_neither_few_contacts_nor_part_of_the_usual() -> None:
    series = made(lambda at: point(1000 + wobble(at), devices=2000, late=20))
    del series[MONDAY]  # the server was not there
    assert odd(series) == set()
    series[MONDAY] = point(0, devices=2000, late=20)  # it was, and nobody came
    assert odd(series) == {Kind.FEW_CONTACTS}
    # With gaps in all weeks but two, nobody knows what is usual; three are enough.
    for week in range(3, 10):
        for around in (-1, 0, 1):
            series.pop(MONDAY - week * WEEK_S + around * HOUR_S, None)
    assert odd(series) == set()
    series[MONDAY - 3 * WEEK_S] = point(1000)
    assert odd(series) == {Kind.FEW_CONTACTS}


def test_a_window_counts_if_half_of_it_was_observed() -> None:
    series = {MONDAY - WEEK_S - n * HOUR_S: point(100) for n in range(6)}
    counted = []
    for n in range(5):
        counted.append(len(past(series, MONDAY, UTC, 6, HOUR_S)[0]))
        del series[MONDAY - WEEK_S - n * HOUR_S]
    assert counted == [1, 1, 1, 1, 0]


def test_a_fleet_that_is_empty_or_small_raises_nothing() -> None:
    for usual_contacts, last in ((0, point(0, devices=0, late=0)), (5, point(0)), (5, point(5, 5)), (19, point(0, 0))):
        series = made(lambda _at, count=usual_contacts: point(count, devices=count, late=0))  # type: ignore[misc]
        series[MONDAY] = last
        assert odd(series) == set()
    assert odd({}) == set()


def test_one_bad_week_in_the_past_hides_nothing() -> None:
    series = made(lambda at: point(1000 + wobble(at), 3))
    for around in (-1, 0, 1):
        series[MONDAY - WEEK_S + around * HOUR_S] = point(300, 200)
    series[MONDAY] = point(1000, 100)
    assert odd(series) == {Kind.ODD_ERROR_RATE}


def test_the_spread_is_at_least_what_chance_explains() -> None:
    even = [[100.0] * 3] * 4
    assert usual(even[:2], 1.0, chance_of_count) is None
    known = usual(even, 0.0, chance_of_count)
    assert known is not None
    assert (known.value, known.spread, known.weeks) == (100.0, 10.0, 4)
    assert distance(40.0, known) == -6.0
    assert chance_of_count(0) == 1.0
    assert chance_of_share(0)(0.5) == 1.0
    assert chance_of_share(100)(0.5) == pytest.approx(0.05)
    assert chance_of_share(100)(0.0) == pytest.approx(0.01, rel=0.02)
    uneven = usual([[90.0, 100.0, 110.0]] * 3, 0.0, lambda _value: 0.0)
    assert uneven is not None
    assert uneven.spread == pytest.approx(14.826)


def replayed() -> dict[int, Point]:
    begin = int(BEGIN.timestamp())
    with FIXTURE.open(encoding="ascii", newline="") as file:
        series = {}
        for n, row in enumerate(csv.DictReader(file)):
            contacts, failed, slow, late = (int(row[name]) for name in ("contacts", "failed", "slow", "late"))
            counts = list(NONE)
            counts[bucket_of(0.8)], counts[bucket_of(0.08)] = slow, contacts - slow
            series[begin + n * STEP_S] = Point(contacts, failed, tuple(counts), TILLS + ALWAYS_ON, late)
    return series


def test_the_fixture_is_what_its_script_makes() -> None:
    found = [(each.contacts, each.failed, sum(each.latencies), each.late) for each in replayed().values()]
    assert found == [(contacts, failed, contacts, late) for contacts, failed, _slow, late in rows()]


def test_ten_weeks_of_a_fleet_raise_what_happened_in_them_and_nothing_else() -> None:
    """With thresholds as they are by default: in whole windows, and after several judgments in a row."""
    series = replayed()
    thresholds = Thresholds(window=2, raise_after=2, clear_after=2)
    raised: set[tuple[str, str]] = set()
    found: Judgement | None = None
    for at in series:
        known: Standings = {} if found is None else found.standings
        found = judge(series, thresholds, BERLIN, known, at, STEP_S)
        day = datetime.fromtimestamp(at, BERLIN).strftime("%m-%d")
        raised |= {(day, each.kind.value) for each in found.found if found.standings[each.key].state.is_raised}
    assert raised == {
        ("10-03", "few-contacts"),  # a public holiday is unusual indeed
        ("10-03", "unusual-late"),
        ("11-03", "few-contacts"),
        ("11-03", "unusual-late"),
        ("11-05", "error-rate"),
        ("11-05", "unusual-error-rate"),
    }


def test_what_is_read_is_what_a_judgment_needs() -> None:
    """The same judgment comes of the spans alone, which are a small part of the series."""
    series = made(lambda at: point(1000 + wobble(at), 3, devices=2000, late=20), weeks=12)
    series[MONDAY] = point(500, 100, devices=2000, late=900)
    thresholds = msgspec.structs.replace(ALONE, window=4)
    spans = needed(MONDAY, thresholds, UTC, HOUR_S)
    part = {at: each for at, each in series.items() if any(first <= at <= last for first, last in spans)}
    assert len(part) <= 4 + WEEKS * 13
    assert judge(part, thresholds, UTC, {}, MONDAY, HOUR_S) == judge(series, thresholds, UTC, {}, MONDAY, HOUR_S)
