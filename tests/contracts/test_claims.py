"""A claims set has every claim, no other, each of its type and within its bounds."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.claims import AGENT_ID, MAX_TIME, check_claims
from contracts.jose import MalformedToken
from tests.contracts.world import CLAIMS

WHOLE = CLAIMS.as_json()
NAMES = ["iss", "sub", "aud", "iat", "nbf", "exp", "jti", "features", "metadata"]


def test_claims_go_round() -> None:
    assert sorted(WHOLE) == sorted(NAMES)
    assert check_claims(WHOLE) == CLAIMS


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_claim_is_named(name: str) -> None:
    with pytest.raises(MalformedToken, match=name):
        check_claims({key: value for key, value in WHOLE.items() if key != name})


def test_an_unknown_claim_is_named() -> None:
    with pytest.raises(MalformedToken, match="seats"):
        check_claims({**WHOLE, "seats": 3})


INSIDE: list[dict[str, Any]] = [
    {"sub": "x" * 128},
    {"features": []},
    {"features": ["x" * 64] * 64},
    {"metadata": {}},
    {"metadata": {str(number): "" for number in range(32)}},
    {"metadata": {"x" * 64: "v" * 256}},
    {"nbf": 0, "exp": 1},
    {"exp": MAX_TIME},
    {"nbf": WHOLE["exp"] - 1},
]
OUTSIDE: list[dict[str, Any]] = [
    *(
        {name: value}
        for name in ("iss", "sub", "aud", "jti")
        for value in ("", "x" * 129, 5, None, ["x"], "a\nb", "a\0", "\ud800")
    ),
    *({name: value} for name in ("iat", "nbf", "exp") for value in (-1, MAX_TIME + 1, "5", None, True, [], 2**70)),
    {"features": "till"},
    {"features": ["x"] * 65},
    {"features": [""]},
    {"features": ["x" * 65]},
    {"features": [5]},
    {"features": [["x"]]},
    {"features": {"x": 1}},
    {"metadata": []},
    {"metadata": {str(number): "" for number in range(33)}},
    {"metadata": {"": "x"}},
    {"metadata": {"x" * 65: "x"}},
    {"metadata": {"x": "v" * 257}},
    {"metadata": {"x": 5}},
    {"metadata": {"x": "\u202e"}},
    {"nbf": WHOLE["exp"]},
    {"nbf": WHOLE["exp"] + 1},
]


@pytest.mark.parametrize("change", INSIDE, ids=lambda change: repr(change)[:40])
def test_bounds_are_inside(change: dict[str, Any]) -> None:
    assert check_claims({**WHOLE, **change}).as_json() == {**WHOLE, **change}


@pytest.mark.parametrize("change", OUTSIDE, ids=lambda change: ascii(change)[:40])
def test_what_is_beyond_the_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        check_claims({**WHOLE, **change})


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(NAMES), anything))
def test_random_claims_are_checked_or_malformed(change: dict[str, Any]) -> None:
    with contextlib.suppress(MalformedToken):
        assert check_claims({**WHOLE, **change}).as_json() == {**WHOLE, **change}


@pytest.mark.parametrize("text", ["a", "A.b_c-9", "x" * 64])
def test_agent_ids(text: str) -> None:
    assert AGENT_ID.fullmatch(text)


@pytest.mark.parametrize("text", ["", ".a", "-a", "x" * 65, "a/b", "a b", "é", "a\n"])
def test_what_is_no_agent_id(text: str) -> None:
    assert not AGENT_ID.fullmatch(text)
