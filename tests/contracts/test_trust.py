"""A trust file names one issuer and public keys of P-256, or it is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.jose import BadSignature, MalformedToken, thumbprint
from contracts.trust import MAX_KEYS, encode_trust, parse_trust
from server.keys.jose import public_jwk
from tests.contracts.world import DELIVERY_KEY, ISSUER, LICENSE_KEY, TRUST_FILE

WHOLE = json.loads(TRUST_FILE)
KEY = public_jwk(LICENSE_KEY)


def test_a_trust_goes_round() -> None:
    trust = parse_trust(TRUST_FILE)
    assert trust.issuer == ISSUER
    assert list(trust.license_keys) == [thumbprint(LICENSE_KEY)]
    assert list(trust.delivery_keys) == [thumbprint(DELIVERY_KEY)]
    assert encode_trust(ISSUER, WHOLE["license_keys"], WHOLE["delivery_keys"]) == TRUST_FILE


def test_each_kind_of_key_is_looked_up_apart() -> None:
    trust = parse_trust(TRUST_FILE)
    assert trust.license_key(thumbprint(LICENSE_KEY)) is trust.license_keys[thumbprint(LICENSE_KEY)]
    for kid in (thumbprint(DELIVERY_KEY), "", None, 5, ["x"]):
        with pytest.raises(BadSignature):
            trust.license_key(kid)
    with pytest.raises(BadSignature):
        trust.delivery_key(thumbprint(LICENSE_KEY))


def many(count: int) -> list[dict[str, str]]:
    return [{**KEY, "kid": str(number)} for number in range(count)]


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": ""},
        {"issuer": 5},
        {"license_keys": []},
        {"license_keys": {}},
        {"license_keys": None},
        {"license_keys": many(MAX_KEYS + 1)},
        {"license_keys": [5]},
        {"license_keys": [{}]},
        {"license_keys": [{**KEY, "kid": 5}]},
        {"license_keys": [{**KEY, "d": LICENSE_KEY["d"]}]},
        {"license_keys": [{**KEY, "x": KEY["y"]}]},
        {"delivery_keys": [{**KEY, "crv": "P-384"}]},
        {"surplus": 1},
    ],
    ids=lambda change: repr(change)[:50],
)
def test_a_trust_file_out_of_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        parse_trust(json.dumps({**WHOLE, **change}).encode())


@pytest.mark.parametrize("name", list(WHOLE))
def test_a_missing_member_is_refused(name: str) -> None:
    with pytest.raises(MalformedToken):
        parse_trust(json.dumps({key: value for key, value in WHOLE.items() if key != name}).encode())


def test_so_many_keys_are_taken() -> None:
    assert len(parse_trust(json.dumps({**WHOLE, "license_keys": many(MAX_KEYS)}).encode()).license_keys) == MAX_KEYS


@given(st.binary(max_size=100))
def test_random_bytes_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedToken):
        parse_trust(data)


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEY, "z"]), inner, max_size=5),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(WHOLE)), anything, min_size=1))
def test_random_members_are_malformed_or_taken(change: dict[str, Any]) -> None:
    try:
        parse_trust(json.dumps({**WHOLE, **change}).encode())
    except MalformedToken:
        return
    assert list(change) == ["issuer"]
