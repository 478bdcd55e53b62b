"""Token buckets, whose bucket it is, and challenges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.base.limits import Buckets, Rate, address_key
from server.exchange.challenges import CHALLENGE_LIFETIME_S, CLOCK_TOLERANCE_S, is_fresh, new_challenge

KEY = bytes(range(32))
PRINT = "ab" * 32
NOW = 1_800_000_000


def test_a_burst_passes_then_the_rate_holds() -> None:
    buckets = Buckets(Rate(2, 3))
    assert [buckets.take("a", 10.0) for _ in range(4)] == [0, 0, 0, 1]
    assert buckets.take("b", 10.0) == 0, "another caller has a bucket of its own"
    assert buckets.take("a", 10.5) == 0
    assert buckets.take("a", 10.5) == 1


def test_waiting_takes_nothing() -> None:
    buckets = Buckets(Rate(0.1, 1))
    assert [buckets.wait("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a", 0.0) == 0
    assert buckets.wait("a", 0.0) == 10


def test_the_table_is_bounded_and_forgets_the_silent_ones() -> None:
    buckets = Buckets(Rate(1, 1), most=2)
    for name in ("a", "b", "c"):
        assert buckets.take(name, 0.0) == 0
    assert buckets.take("c", 0.0) == 1
    assert buckets.take("a", 0.0) == 0, "forgotten"


@given(st.lists(st.floats(0, 5), max_size=60), st.floats(0.1, 10), st.integers(1, 10))
def test_never_more_than_burst_and_rate_allow(pauses: list[float], rate: float, burst: int) -> None:
    buckets, now, passed = Buckets(Rate(rate, burst)), 0.0, 0
    for pause in pauses:
        now += pause
        passed += buckets.take("a", now) == 0
    assert passed <= burst + now * rate + 1e-6


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
        ("x" * 100, "x" * 64),
    ],
)
def test_an_address_is_one_caller(address: str, key: str) -> None:
    assert address_key(address) == key


def test_a_challenge_counts_for_its_certificate_and_its_time() -> None:
    challenge = new_challenge(KEY, PRINT, NOW, bytes(16))
    assert is_fresh(challenge, KEY, PRINT, NOW)
    assert is_fresh(challenge, KEY, PRINT, NOW + CHALLENGE_LIFETIME_S - 1)
    assert is_fresh(challenge, KEY, PRINT, NOW - CLOCK_TOLERANCE_S)
    assert not is_fresh(challenge, KEY, PRINT, NOW + CHALLENGE_LIFETIME_S)
    assert not is_fresh(challenge, KEY, PRINT, NOW - CLOCK_TOLERANCE_S - 1)
    assert not is_fresh(challenge, KEY, "cd" * 32, NOW)
    assert not is_fresh(challenge, bytes(32), PRINT, NOW)


@given(st.integers(0, 74), st.sampled_from("AB-_9"))
def test_an_altered_challenge_is_none(place: int, letter: str) -> None:
    challenge = new_challenge(KEY, PRINT, NOW, bytes(16))
    altered = challenge[:place] + letter + challenge[place + 1 :]
    assert is_fresh(altered, KEY, PRINT, NOW) == (altered == challenge)


@given(st.text(max_size=200))
def test_any_text_is_no_challenge(text: str) -> None:
    assert not is_fresh(text, KEY, PRINT, NOW)
