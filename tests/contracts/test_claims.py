"""A claims set has every claim, no other, each of its type and within its bounds."""

import contextlib
import json
import re
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from contracts.claims import AGENT_ID, MAX_TIME, Claims, _read_as_issued, check_claims, read_claims
from contracts.jose import MalformedToken, b64decode, parse_json_object
from contracts.licensetoken import parse_token
from server.keys.jose import issue_token, new_signing_key
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


def encoded(claims: dict[str, Any]) -> bytes:
    """As our server writes a claims set."""
    return json.dumps(claims, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def strictly(payload: bytes) -> Claims | str:
    """The claims by the strict parser alone, or its refusal."""
    try:
        return check_claims(parse_json_object(payload, "claims set"))
    except MalformedToken as error:
        return str(error)


def read(payload: bytes) -> Claims | str:
    try:
        return read_claims(payload)
    except MalformedToken as error:
        return str(error)


def test_what_our_server_issues_is_read_in_one_pass() -> None:
    key = new_signing_key()
    token = issue_token(CLAIMS, bytes(32), 1, key)
    sealed = parse_token(token)
    inner = AESGCM(bytes(32)).decrypt(sealed.nonce, sealed.ciphertext, sealed.protected).decode()
    assert _read_as_issued(b64decode(inner.split(".")[1])) == CLAIMS


@pytest.mark.parametrize("change", [{}, *INSIDE], ids=lambda change: repr(change)[:40])
def test_both_readings_give_the_same_claims(change: dict[str, Any]) -> None:
    payload = encoded({**WHOLE, **change})
    found = read(payload)
    assert isinstance(found, Claims) and found == strictly(payload)
    assert (type(found.features), type(found.metadata)) == (tuple, dict)


@pytest.mark.parametrize("change", OUTSIDE, ids=lambda change: ascii(change)[:40])
def test_what_is_beyond_the_bounds_is_refused_with_the_same_text(change: dict[str, Any]) -> None:
    found = read(encoded({**WHOLE, **change}))
    assert isinstance(found, str) and found == strictly(encoded({**WHOLE, **change}))


USUAL = encoded(WHOLE)
ODD = {
    "a name twice": USUAL[:-1] + b',"sub":"shop 12"}',
    "a name twice, first as the decoder would take it": b'{"sub":"other",' + USUAL[1:],
    "a name of the metadata twice": USUAL.replace(b'"metadata":{', b'"metadata":{"shop":"x",'),
    "an unknown claim": USUAL[:-1] + b',"seats":3}',
    "a point": re.sub(rb'"iat":(\d+)', rb'"iat":\1.0', USUAL),
    "an exponent": re.sub(rb'"iat":\d+', b'"iat":1e9', USUAL),
    "minus zero": re.sub(rb'"nbf":\d+', b'"nbf":-0', USUAL),
    "white space": USUAL.replace(b",", b", ", 1),
    "another order": encoded(dict(sorted(WHOLE.items(), reverse=True))),
    "an escape": USUAL.replace(b"shop 12", b"shop \\u00312"),
    "half a surrogate pair": USUAL.replace(b"shop 12", b"\\ud800"),
    "a byte order mark": b"\xef\xbb\xbf" + USUAL,
    "more after it": USUAL + b" {}",
    "UTF-16": USUAL.decode().encode("utf-16"),
    "no text": b"\xff",
    "nothing": b"",
    "an array": b"[]",
    "deep": b'{"metadata":' * 100_000,
}


@pytest.mark.parametrize("payload", ODD.values(), ids=ODD)
def test_what_is_written_in_another_way_is_left_to_the_strict_parser(payload: bytes) -> None:
    assert read(payload) == strictly(payload)


@given(st.data())
def test_both_readings_agree_on_whatever_is_done_to_the_bytes(data: st.DataObject) -> None:
    payload = bytearray(USUAL)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(payload) - 1))
        piece = data.draw(st.binary(max_size=2) | st.sampled_from([b'"', b"\\", b"0", b".0", b"1", b",", b"true", b" "]))
        payload[at : at + data.draw(st.integers(0, 2))] = piece
        if not payload:
            break
    assert read(bytes(payload)) == strictly(bytes(payload))


@given(st.dictionaries(st.sampled_from(NAMES), anything))
def test_both_readings_agree_on_random_claims(change: dict[str, Any]) -> None:
    payload = encoded({**WHOLE, **change})
    assert read(payload) == strictly(payload)
