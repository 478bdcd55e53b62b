"""Whose token bucket it is, and challenges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.base.limits import address_key
from server.exchange.challenges import CHALLENGE_LIFETIME_S, CLOCK_TOLERANCE_S, is_fresh, new_challenge

KEY = bytes(range(32))
PRINT = "ab" * 32
NOW = 1_800_000_000


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
