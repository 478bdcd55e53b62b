"""Thresholds, and when a condition becomes an alert and ends."""

from datetime import UTC

import msgspec
import pytest

from server.base.errors import Invalid
from server.fleet.monitoring.intervals import INTERVAL_S, SETTLED_S, interval_of, settled_until
from server.fleet.monitoring.judgement import Judgement, Standings, judge
from server.fleet.monitoring.latency import NONE, bucket_of
from server.fleet.monitoring.rules import Latencies, Severity, Shares, Thresholds, text_of, thresholds_of, zone_for
from server.fleet.monitoring.series import Point, window
from server.fleet.monitoring.standings import FORGOTTEN_AFTER, STATES, Standing, State, Verdict, after
from server.fleet.monitoring.words import detail_of

AT = 1_800_000_000 // INTERVAL_S * INTERVAL_S
ONE = Thresholds(window=1, anomalies=False)


def point(contacts: int, failed: int = 0, seconds: float = 0.02, devices: int | None = None, late: int | None = None) -> Point:
    counts = list(NONE)
    counts[bucket_of(seconds)] = contacts
    return Point(contacts, failed, tuple(counts), devices, late)


def raised(judgement: Judgement) -> set[str]:
    return {key for key, standing in judgement.standings.items() if standing.state.is_raised}


def run(points: list[Point | None], thresholds: Thresholds = ONE) -> list[set[str]]:
    """What is raised behind each point; None is a gap."""
    series, standings, found = {}, Standings(), []
    for n, each in enumerate(points):
        at = AT + n * INTERVAL_S
        if each is not None:
            series[at] = each
        judgement = judge(series, thresholds, UTC, standings, at)
        standings = judgement.standings
        found.append(raised(judgement))
    return found


def test_an_interval_is_judged_once_it_has_settled() -> None:
    assert interval_of(AT + 299.9) == AT
    assert settled_until(AT + SETTLED_S - 1) == AT - INTERVAL_S
    assert settled_until(AT + SETTLED_S) == AT


def test_an_alert_comes_after_several_judgments_in_a_row_and_goes_after_more() -> None:
    bad, good = point(100, 10), point(100, 1)
    warning = {"error-rate/warning"}
    assert run([bad, bad, good, bad, bad, bad]) == [set()] * 5 + [warning]
    found = run([bad] * 3 + [good] * 5 + [bad] + [good] * 6)
    assert found == [set()] * 2 + [warning] * 12 + [set()]


def test_what_is_worse_is_critical_as_well() -> None:
    assert run([point(100, 30)] * 3)[-1] == {"error-rate/warning", "error-rate/critical"}
    found = run([point(100, 30)] * 3 + [point(100, 10)] * 6)
    assert found[-2:] == [{"error-rate/warning", "error-rate/critical"}, {"error-rate/warning"}]


def test_each_quantity_has_its_own_thresholds() -> None:
    thresholds = msgspec.structs.replace(ONE, late=Shares(0.1, 0.5))
    point_ = point(100, 6, 3.0, devices=100, late=20)
    assert run([point_] * 3, thresholds)[-1] == {"error-rate/warning", "latency/warning", "late/warning"}
    off = msgspec.structs.replace(ONE, error_rate=Shares(), latency_p95_s=Latencies())
    assert run([point(100, 100, 9.0, devices=100, late=100)] * 9, off)[-1] == set()


def test_a_bound_itself_is_bad() -> None:
    assert run([point(100, 5)] * 3)[-1] == {"error-rate/warning"}
    assert run([point(1000, 49)] * 3)[-1] == set()


def test_gaps_and_too_few_contacts_neither_raise_nor_clear() -> None:
    bad, good, few = point(100, 10), point(100), point(19, 19)
    warning = {"error-rate/warning"}
    assert run([few] * 9)[-1] == set()
    assert run([bad, None, bad, few, None, bad])[-1] == warning
    assert run([bad] * 3 + [few, None] * 20)[-1] == warning
    assert run([bad] * 3 + [good, None] * 6)[-1] == set()


def test_what_nobody_observes_for_a_day_is_forgotten() -> None:
    standing = Standing(State.RAISED, 3, True)
    for _ in range(FORGOTTEN_AFTER - 1):
        standing = after(standing, Verdict.UNKNOWN, 3, 6)
    assert standing.state is State.RAISED
    assert after(standing, Verdict.UNKNOWN, 3, 6).state is State.QUIET
    assert after(standing, Verdict.BAD, 3, 6).unknown == 0  # one judgment, and the day begins again


def test_the_table_raises_and_clears_by_enough_alone() -> None:
    raising = {event for state, event, then in STATES if then.is_raised and not state.is_raised}
    clearing = {event for state, event, then in STATES if state.is_raised and not then.is_raised}
    assert {each.name for each in raising} == {"FOUND_ENOUGH"}
    assert {each.name for each in clearing} == {"NOT_FOUND_ENOUGH", "FORGOTTEN"}


def test_a_window_adds_what_it_has() -> None:
    series = {AT: point(10, 1, devices=100, late=50), AT - 2 * INTERVAL_S: point(30, 3, 0.3, devices=100, late=30)}
    found = window(series, AT, 4)
    assert (found.observed, found.contacts, found.error_rate, found.devices, found.late_share) == (2, 40, 0.1, 100, 0.4)
    assert found.latency_p95_s == pytest.approx(0.5, abs=0.05)
    nothing = window({}, AT, 4)
    assert (nothing.observed, nothing.error_rate, nothing.latency_p95_s, nothing.late_share) == (0, None, None, None)
    # Devices that failed in a rollout count as failures too, and may be more than those that came.
    assert window({AT: point(2, 9)}, AT, 1).error_rate == 1.0


def test_health_has_no_rate_of_too_few() -> None:
    found = judge({AT: point(5, 5)}, ONE, UTC, {}, AT).health
    assert (found.at, found.contacts, found.error_rate, found.latency_p95_s) == (AT + INTERVAL_S, 5, None, None)


def test_alerts_say_what_was_measured_and_what_it_was_compared_with() -> None:
    found = {each.key: each for each in judge({AT: point(100, 7, 3.0)}, ONE, UTC, {}, AT).found}
    assert detail_of(found["error-rate/warning"]) == "7 % of the contacts failed; the threshold is 5 %"
    assert detail_of(found["latency/warning"]).startswith("the 95th percentile of the latency is 2.95 s; the threshold is 2 s")


def test_thresholds_are_read_strictly() -> None:
    usual = Thresholds()
    assert thresholds_of(text_of(usual)) == usual
    assert thresholds_of('{"error_rate": {"critical": 0.5}}').error_rate == Shares(None, 0.5)
    for text, problem in (
        ("[]", "Expected `object`"),
        ('{"eror_rate": {}}', "unknown field `eror_rate`"),
        ('{"error_rate": {"warning": 1.5}}', r"<= 1.0 - at `\$.error_rate.warning`"),
        ('{"error_rate": {"warning": 0.5, "critical": 0.4}}', r"error_rate: 'critical' \(0.4\) must be greater"),
        ('{"latency_p95_s": {"warning": 9}}', "latency_p95_s.warning"),
        ('{"window": 0}', "window"),
        ('{"zone": "Mars/Olympus"}', "names the time zone 'Mars/Olympus', which does not exist"),
    ):
        with pytest.raises(Invalid, match=problem):
            thresholds_of(text)
    assert zone_for(usual) is UTC


def test_severities_have_an_order() -> None:
    assert [each.rank for each in (Severity.INFO, Severity.WARNING, Severity.CRITICAL)] == [0, 1, 2]
