"""Backoff, circuit breaker and Retry-After, for every input."""

import itertools
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.uplink.retry import (
    BASE_S,
    CAP_S,
    TRANSITIONS,
    BreakerEvent,
    BreakerState,
    CircuitBreaker,
    delay,
    next_state,
    retry_after,
)
from common.statetable import UnknownTransition

chances = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10**6), chances, st.floats(0.001, 1000), st.floats(0.001, 100_000))
def test_a_delay_stays_in_its_bounds(attempt: int, chance: float, base: float, cap: float) -> None:
    assert 0 <= delay(attempt, chance, base, cap) <= cap
    assert delay(attempt, 0.0, base, cap) == 0


@given(st.integers(0, 200), chances)
def test_the_bound_doubles_until_the_cap(attempt: int, chance: float) -> None:
    assert delay(attempt, chance) == chance * min(CAP_S, BASE_S * 2**attempt)
    assert delay(attempt, chance) <= delay(attempt + 1, chance)


@given(st.integers(0, 20), chances, chances)
def test_chance_spreads_over_the_whole_range(attempt: int, one: float, other: float) -> None:
    if one < other:
        assert delay(attempt, one) <= delay(attempt, other)


@pytest.mark.parametrize(("attempt", "chance"), [(-1, 0.5), (0, 1.0), (0, -0.1)])
def test_what_is_no_attempt_or_chance_is_refused(attempt: int, chance: float) -> None:
    with pytest.raises(ValueError, match="attempt must not be negative"):
        delay(attempt, chance)


NOW = 1_893_456_000
times = st.integers(0, 4_000_000_000)


@given(st.integers(0, 10**30), times)
def test_seconds_are_taken_and_capped(seconds: int, now: int) -> None:
    assert retry_after(f" {seconds} ", now) == min(seconds, CAP_S)


@given(times, times)
def test_a_date_is_taken_and_capped(moment: int, now: int) -> None:
    text = format_datetime(datetime.fromtimestamp(moment, UTC), usegmt=True)
    assert retry_after(text, now) == min(max(moment - now, 0), CAP_S)


def test_the_older_forms_of_a_date_are_taken() -> None:
    # RFC 9110 section 5.6.7: the same moment in three forms
    for text in ("Tue, 01 Jan 2030 00:01:00 GMT", "Tuesday, 01-Jan-30 00:01:00 GMT", "Tue Jan  1 00:01:00 2030"):
        assert retry_after(text, NOW) == 60


@given(st.text(max_size=60), times)
def test_anything_else_is_none_and_nothing_raises(text: str, now: int) -> None:
    value = retry_after(text, now)
    assert value is None or 0 <= value <= CAP_S


@pytest.mark.parametrize(
    "text", ["", "soon", "-5", "1.5", "٣", "Tue, 99 Jan 2030 00:00:00 GMT", "Mon, 01 Jan 99999 00:00:00 GMT"]
)
def test_these_are_none(text: str) -> None:
    assert retry_after(text, NOW) is None


@pytest.mark.parametrize(("state", "event"), list(itertools.product(BreakerState, BreakerEvent)))
def test_every_event_in_every_state(state: BreakerState, event: BreakerEvent) -> None:
    if event in TRANSITIONS[state]:
        assert next_state(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(UnknownTransition, match=f"{event.value}.*{state.value}"):
            next_state(state, event)


steps = st.lists(st.tuples(st.sampled_from(["ask", "good", "bad"]), st.floats(0, 100)), max_size=60)


@given(steps, st.integers(1, 6), st.floats(0.5, 120))
def test_a_breaker_keeps_its_promises(steps: list[tuple[str, float]], limit: int, cool: float) -> None:
    breaker, now, opened, row = CircuitBreaker(limit, cool), 0.0, 0.0, 0
    for step, seconds in steps:
        now += seconds
        was = breaker.state
        if step == "ask":
            permitted = breaker.permits(now)
            if was is BreakerState.CLOSED:
                assert permitted
            if was is BreakerState.OPEN:
                assert permitted == (now >= opened + cool)
            if permitted and was is not BreakerState.CLOSED:
                assert breaker.state is BreakerState.HALF_OPEN
                assert not breaker.permits(now)  # one on trial, no second
        elif step == "good":
            breaker.succeeded()
            row = 0
            assert (breaker.state is BreakerState.OPEN) == (was is BreakerState.OPEN)
        else:
            breaker.failed(now)
            row += 1
            if breaker.state is BreakerState.OPEN and was is not BreakerState.OPEN:
                opened = now
                assert was is BreakerState.HALF_OPEN or row >= limit
            if was is not BreakerState.CLOSED:
                assert breaker.state is BreakerState.OPEN


def test_the_usual_way() -> None:
    breaker = CircuitBreaker(limit=3, cool_s=60)
    for second in range(3):
        assert breaker.permits(second)
        breaker.failed(second)
    assert breaker.state is BreakerState.OPEN and not breaker.permits(61.9)
    assert breaker.permits(62) and not breaker.permits(62)
    breaker.failed(63)
    assert not breaker.permits(122.9) and breaker.permits(123)
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED and breaker.failures == 0


def test_a_server_may_ask_for_more_time() -> None:
    breaker = CircuitBreaker(limit=1, cool_s=10)
    breaker.failed(0, wait_s=300)
    assert not breaker.permits(299) and breaker.permits(300)


def test_a_trial_without_a_result_does_not_block_for_ever() -> None:
    breaker = CircuitBreaker(limit=1, cool_s=10)
    breaker.failed(0)
    assert breaker.permits(10) and not breaker.permits(19) and breaker.permits(20)


def test_a_breaker_needs_a_limit_and_a_time() -> None:
    for limit, cool in ((0, 1.0), (1, 0.0)):
        with pytest.raises(ValueError, match="must be positive"):
            CircuitBreaker(limit, cool)


def test_a_call_that_somebody_asked_for_is_the_trial() -> None:
    breaker = CircuitBreaker(limit=2, cool_s=60)
    breaker.failed(0)
    breaker.failed(0, wait_s=3600)
    assert not breaker.permits(10)
    breaker.try_now()
    breaker.failed(10)
    assert breaker.state is BreakerState.OPEN and not breaker.permits(60)
    breaker.try_now()
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED and breaker.permits(61)
