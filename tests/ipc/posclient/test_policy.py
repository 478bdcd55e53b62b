"""A client pauses between attempts, longer each time up to a bound, and never beyond its deadline."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import ErrorCode
from ipc.posclient.policy import FIRST_PAUSE_S, LONGEST_PAUSE_S, RETRIED_CODES, Attempts


@given(
    st.floats(0, 1e6), st.floats(-10, 1e6), st.integers(0, 60), st.floats(0, 1),
)  # fmt: skip
def test_no_pause_reaches_the_deadline(ends: float, now: float, count: int, jitter: float) -> None:
    wait = Attempts(ends, count).pause(now, jitter)
    if wait is not None:
        assert 0 < wait < ends - now
        assert wait <= LONGEST_PAUSE_S


def test_pauses_grow_to_their_bound() -> None:
    attempts = Attempts(1e9)
    waits = [attempts.pause(0.0, 1.0) for _time in range(8)]
    assert waits == [FIRST_PAUSE_S * 2**count for count in range(5)] + [LONGEST_PAUSE_S] * 3
    assert attempts.count == 8


@given(st.floats(0, 1), st.integers(0, 40))
def test_jitter_takes_at_most_half_away(jitter: float, count: int) -> None:
    whole, wait = Attempts(1e9, count).pause(0.0, 1.0), Attempts(1e9, count).pause(0.0, jitter)
    assert whole is not None
    assert wait is not None
    assert whole / 2 <= wait <= whole


def test_a_drawn_pause_keeps_the_same_bounds() -> None:
    for _time in range(50):
        wait = Attempts(1e9, 3).pause(0.0)
        assert wait is not None
        assert 0.04 <= wait <= 0.08


@pytest.mark.parametrize("now", [1.0, 1.5, 0.9999])
def test_past_the_deadline_there_is_no_attempt(now: float) -> None:
    assert Attempts(1.0).pause(now, 0.0) is None


@pytest.mark.parametrize("count", [1000, 1024, 1100, 100_000])
def test_a_long_deadline_allows_any_number_of_attempts(count: int) -> None:
    assert Attempts(1e9, count).pause(0.0, 1.0) == LONGEST_PAUSE_S


def test_what_remains_is_never_negative() -> None:
    assert Attempts(5.0).remaining(3.0) == 2.0
    assert Attempts(5.0).remaining(9.0) == 0.0


def test_only_passing_troubles_are_tried_again() -> None:
    assert {code.name for code in RETRIED_CODES} == {"SHUTTING_DOWN", "RATE_LIMITED", "TIMED_OUT", "UNAVAILABLE"}
    assert ErrorCode.NONCE_REPLAYED not in RETRIED_CODES
