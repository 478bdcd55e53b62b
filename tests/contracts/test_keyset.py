"""Key sets: the root's signature, its pin, numbers that only grow, and a root that hands over to another."""

import json
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from contracts.jose import BadSignature, MalformedToken, thumbprint
from contracts.keyset import KEY_SET_TYPE, MAX_KEY_SETS, pin_of_jwk, verify_key_set, verify_key_sets

ROOT, OTHER_ROOT, THIRD_ROOT, LICENSE, ROTATION = (ECKey.generate_key("P-256", private=True) for _ in range(5))


def _jwk(key: ECKey) -> dict[str, str]:
    full: dict[str, Any] = key.as_dict(private=False)
    return {name: str(full[name]) for name in ("kty", "crv", "x", "y")}


def _named(key: ECKey) -> dict[str, str]:
    return _jwk(key) | {"kid": thumbprint(_jwk(key))}


CONTENT: dict[str, Any] = {
    "v": 1,
    "number": 4,
    "issuer": "acme",
    "issued_at": 10,
    "expires": 20,
    "license_keys": [_named(LICENSE)],
    "rotation_keys": [_named(ROTATION)],
    "enrollment_keys": [_named(ROTATION)],
    "certificates": ["-----BEGIN CERTIFICATE-----"],
    "roots": [pin_of_jwk(_jwk(ROOT))],
}


def _signed(content: dict[str, Any], key: ECKey = ROOT, jwk: dict[str, str] | None = None, **header: Any) -> str:
    protected = {"alg": "ES256", "typ": KEY_SET_TYPE, "jwk": jwk or _jwk(key), **header}
    # joserfc does not sign headers with a jwk by default; the member is registered, and its use here is ours.
    text: str = jws.serialize_compact(protected, json.dumps(content).encode(), key, algorithms=["ES256"])
    return text


PINS = (pin_of_jwk(_jwk(ROOT)),)


def test_a_set_signed_by_the_pinned_root_is_taken() -> None:
    found = verify_key_set(_signed(CONTENT), PINS)
    assert found.root == PINS[0] and found.content.number == 4
    trust = found.content.trust()
    assert trust.issuer == "acme"
    assert set(trust.license_keys) == {_named(LICENSE)["kid"]} and set(trust.delivery_keys) == {_named(ROTATION)["kid"]}


def test_only_a_higher_number_is_taken() -> None:
    assert verify_key_set(_signed(CONTENT), PINS, above=3).content.number == 4
    for above in (4, 5, 2**53 - 1):
        with pytest.raises(MalformedToken, match="number 4"):
            verify_key_set(_signed(CONTENT), PINS, above=above)


def test_another_root_is_refused_also_where_it_shows_the_pinned_key() -> None:
    with pytest.raises(BadSignature):
        verify_key_set(_signed(CONTENT, OTHER_ROOT), PINS)
    with pytest.raises(BadSignature):
        verify_key_set(_signed(CONTENT, OTHER_ROOT, jwk=_jwk(ROOT)), PINS)


def test_a_root_hands_over_to_the_next() -> None:
    both = (pin_of_jwk(_jwk(ROOT)), pin_of_jwk(_jwk(OTHER_ROOT)))
    first = verify_key_set(_signed({**CONTENT, "roots": list(both)}), PINS).content
    second = verify_key_set(_signed({**CONTENT, "number": 5}, OTHER_ROOT), first.roots, above=first.number)
    assert second.root == both[1]


def _naming(number: int, by: ECKey, *roots: ECKey) -> str:
    return _signed({**CONTENT, "number": number, "roots": [pin_of_jwk(_jwk(root)) for root in roots]}, by)


FIRST = _naming(4, ROOT, ROOT, OTHER_ROOT)
SECOND = _naming(5, OTHER_ROOT, OTHER_ROOT, THIRD_ROOT)
THIRD = _naming(6, THIRD_ROOT, THIRD_ROOT)


def test_the_sets_between_lead_from_a_trusted_root_to_the_last_one() -> None:
    assert verify_key_sets(FIRST, PINS).content.number == 4
    assert verify_key_sets("\n".join((FIRST, SECOND, THIRD)), PINS).content.number == 6
    # Who has come further passes over what leads there, also where another root has signed it.
    assert verify_key_sets("\n".join((FIRST, SECOND, THIRD)), (pin_of_jwk(_jwk(THIRD_ROOT)),), above=5).content.number == 6
    assert verify_key_sets("\n".join((THIRD, FIRST)), PINS).content.number == 4


@pytest.mark.parametrize(
    ("sets", "above"),
    [
        ((SECOND,), -1),
        ((FIRST, THIRD), -1),
        ((SECOND, FIRST, THIRD), -1),
        # A root that was given up does not come back by an old set that named it.
        ((FIRST, SECOND), 4),
        ((FIRST, _naming(4, OTHER_ROOT, OTHER_ROOT)), -1),
        ((FIRST, ""), -1),
        ((FIRST,) * MAX_KEY_SETS + (SECOND,), -1),
    ],
)
def test_sets_that_do_not_lead_to_the_last_one_are_refused(sets: tuple[str, ...], above: int) -> None:
    with pytest.raises((MalformedToken, BadSignature)):
        verify_key_sets("\n".join(sets), PINS, above)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"number": -1},
        {"number": "5"},
        {"license_keys": []},
        {"rotation_keys": [_jwk(ROTATION)]},
        {"rotation_keys": [_named(ROTATION), _named(ROTATION)]},
        {"license_keys": [{**_named(LICENSE), "d": "x" * 43}]},
        {"license_keys": [{**_named(LICENSE), "y": "A" * 43}]},
        {"roots": []},
        {"roots": ["sha256:zz"]},
        {"extra": 1},
    ],
)
def test_a_set_of_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        verify_key_set(_signed({**CONTENT, **change}), PINS)


@pytest.mark.parametrize("header", [{"typ": "license+jwt"}, {"kid": "x"}])
def test_another_header_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        verify_key_set(_signed(CONTENT, **header), PINS)


def test_every_changed_character_is_noticed() -> None:
    text = _signed(CONTENT)
    for place in range(0, len(text), 17):
        other = "A" if text[place] != "A" else "B"
        with pytest.raises((MalformedToken, BadSignature)):
            verify_key_set(text[:place] + other + text[place + 1 :], PINS)
