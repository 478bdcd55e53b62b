"""Bandwidth limit and least rate, by a clock of the test."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.updatermessages import UpdaterCode
from updater.failures import UpdateFailed
from updater.pace import BURST_S, LEAST_RATE, WINDOW_S, Limit, Watch


@given(st.integers(1024, 10**8), st.lists(st.integers(1, 32768), min_size=1, max_size=200))
def test_no_stretch_of_time_brings_more_than_the_rate_and_a_burst(rate: int, sizes: list[int]) -> None:
    limit, now, total = Limit(rate, 0.0), 0.0, 0
    for size in sizes:
        now += limit.spent(size, now)
        total += size
        assert total <= rate * (now + BURST_S) * 1.001 + 1
    assert now <= total / rate, "and it is not slower than the rate"


def test_what_was_not_used_is_not_saved_up() -> None:
    limit = Limit(1000, 0.0)
    assert limit.spent(250, 3600.0) == 0.0
    assert limit.spent(1000, 3600.0) == pytest.approx(1.0)


def test_a_byte_now_and_then_is_too_slow() -> None:
    watch = Watch(100.0)
    for second in range(int(WINDOW_S)):
        watch.received(1, 100.0 + second)
    with pytest.raises(UpdateFailed) as caught:
        watch.received(1, 100.0 + WINDOW_S)
    assert caught.value.code == UpdaterCode.SLOW and caught.value.network


def test_the_least_rate_is_enough_for_ever() -> None:
    watch = Watch(0.0)
    for second in range(1, 600):
        watch.received(LEAST_RATE, float(second))


def test_a_stall_after_a_fast_beginning_is_noticed_within_two_windows() -> None:
    watch = Watch(0.0)
    watch.received(10**9, 1.0)
    watch.received(0, WINDOW_S)
    assert watch.left(WINDOW_S) == WINDOW_S
    with pytest.raises(UpdateFailed):
        watch.received(0, 2 * WINDOW_S)


def test_our_own_limit_and_pauses_are_not_the_servers_fault() -> None:
    watch = Watch(0.0, rate=1024)
    watch.received(600 * 60, WINDOW_S)  # a little more than half of the limit
    watch.paused(500.0)
    watch.received(1, WINDOW_S + 510.0)
    assert watch.left(WINDOW_S + 510.0) == 50.0
