"""A bucket gives its burst and then its rate, never more; full or forgotten buckets cost no memory."""

from hypothesis import given
from hypothesis import strategies as st

from common.tokenbucket import BoundedBuckets, Buckets


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    buckets = Buckets(2.0, 5.0)
    assert [buckets.take("a", 0.0) for _time in range(7)] == [True] * 5 + [False] * 2
    assert buckets.take("b", 0.0)
    assert not buckets.take("a", 0.4)
    assert buckets.take("a", 0.5)
    assert [buckets.take("a", 100.0) for _time in range(6)] == [True] * 5 + [False]


@given(st.lists(st.floats(0, 3), max_size=80), st.integers(1, 5), st.integers(1, 8))
def test_never_more_than_burst_and_rate_allow(waits: list[float], rate: int, burst: int) -> None:
    buckets, now, taken = Buckets(rate, burst), 0.0, 0
    for wait in waits:
        now += wait
        taken += buckets.take("a", now)
        assert taken <= burst + now * rate + 1e-6
        buckets.forget_full(now)


def test_full_buckets_cost_no_memory() -> None:
    buckets = Buckets(1.0, 2.0)
    buckets.take("a", 0.0)
    buckets.forget_full(0.9)
    assert len(buckets.levels) == 1
    buckets.forget_full(1.0)
    assert len(buckets.levels) == 0


@given(st.lists(st.floats(0, 5), max_size=60), st.floats(0.1, 10), st.integers(1, 10))
def test_bounded_buckets_give_no_more_either(pauses: list[float], rate: float, burst: int) -> None:
    buckets, now, passed = BoundedBuckets(rate, burst, 10), 0.0, 0
    for pause in pauses:
        now += pause
        passed += buckets.take("a", now)
    assert passed <= burst + now * rate + 1e-6


def test_who_is_refused_learns_when_to_come_again() -> None:
    buckets = Buckets(2, 3)
    assert [buckets.take("a", 10.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.wait("a", 10.0) == 1
    assert buckets.wait("b", 10.0) == 0, "another caller has a bucket of its own"
    assert buckets.take("a", 10.5)
    assert not buckets.take("a", 10.5)
    assert buckets.wait("a", 10.5) == 1


def test_waiting_takes_nothing() -> None:
    buckets = Buckets(0.1, 1)
    assert [buckets.wait("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a", 0.0)
    assert buckets.wait("a", 0.0) == 10


@given(st.floats(0.1, 10), st.integers(1, 5), st.lists(st.floats(0, 3), min_size=1, max_size=30))
def test_after_the_wait_there_is_a_token(rate: float, burst: int, pauses: list[float]) -> None:
    buckets, now = Buckets(rate, burst), 0.0
    for pause in pauses:
        now += pause
        if not buckets.take("a", now):
            assert buckets.wait("a", now) > 0
            now += buckets.wait("a", now) + 1e-6
            assert buckets.take("a", now)


def test_bounded_buckets_forget_who_took_longest_ago() -> None:
    buckets = BoundedBuckets(1, 2, most=2)
    assert all(buckets.take(name, 0.0) for name in ("a", "b", "a"))
    assert not buckets.take("a", 0.0)
    assert buckets.take("c", 0.0)
    assert set(buckets.levels) == {"a", "c"}, "b was forgotten, not a"
    assert not buckets.take("a", 0.0)
