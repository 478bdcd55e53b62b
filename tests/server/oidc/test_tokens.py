"""Tokens of the OpenID provider: which count, and every way of confusing one for another that we know."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.jose import b64decode, b64encode
from server.accounts.provider import Provider
from server.oidc.keyset import DocumentRefused, keys_of, keys_url
from server.oidc.tokens import LEEWAY_S, MAX_CHARS, TokenRefused, Vouched, parsed, verified
from tests.server.devices import NOW
from tests.support.openid import (
    AUDIENCE,
    ISSUER,
    SigningKey,
    claims,
    compact,
    ed25519_key,
    es256,
    hs256,
    key_set,
    rsa256,
    signed,
)  # fmt: skip

PROVIDER = Provider(ISSUER, AUDIENCE)
EC, RSA, PSS, ED = es256(), rsa256(), rsa256("pss", pss=True, alg="PS256"), ed25519_key()
KEYS = keys_of(key_set(EC, RSA, PSS, ED))
FOREIGN = es256()
"""Somebody else's key, with the id of the provider's."""


def judged(text: str, provider: Provider = PROVIDER, now: int = NOW) -> Vouched:
    token = parsed(text)
    if token.kid not in KEYS:
        raise TokenRefused("no such key")
    return verified(token, KEYS[token.kid], provider, now)


def refused(text: str, why: str, provider: Provider = PROVIDER, now: int = NOW) -> None:
    with pytest.raises(TokenRefused, match=why):
        judged(text, provider, now)


@pytest.mark.parametrize(("key", "alg"), [(EC, "ES256"), (RSA, "RS256"), (PSS, "PS256"), (ED, "EdDSA"), (ED, "Ed25519")])
def test_each_algorithm_of_the_list_counts(key: SigningKey, alg: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert judged(signed(key, claims(NOW), alg)) == Vouched(ISSUER, "17")


@pytest.mark.parametrize("kind", ["at+jwt", "AT+JWT", "application/at+jwt", "JWT", None])
def test_access_tokens_and_id_tokens_count(kind: str | None) -> None:
    assert judged(signed(EC, claims(NOW), typ=kind)).subject == "17"


def test_an_audience_may_be_one_of_several() -> None:
    assert judged(signed(EC, claims(NOW, aud=["account", AUDIENCE]))).subject == "17"


# The wrong key, the wrong algorithm


@pytest.mark.parametrize(
    "alg", ["none", "None", "HS256", "HS512", "ES256K", "ES384", "RS1", "RS512", "", "es256", 5, None, ["ES256"]]
)
def test_no_other_algorithm_counts(alg: Any) -> None:
    refused(signed(EC, claims(NOW), alg), "algorithm")


def test_a_token_without_signature_is_no_token() -> None:
    text = signed(EC, claims(NOW), "none")
    refused(text.rpartition(".")[0] + ".", "not a signed JWT")


@pytest.mark.parametrize("secret", [RSA.jwk["n"].encode(), b64decode(RSA.jwk["n"]), json.dumps(RSA.jwk).encode(), b""])
def test_a_public_key_is_no_secret(secret: bytes) -> None:
    refused(signed(RSA, claims(NOW), "HS256", hs256(secret)), "algorithm")
    refused(signed(RSA, claims(NOW), "RS256", hs256(secret)), "signature")


def test_a_signature_of_another_padding_does_not_count() -> None:
    refused(signed(RSA, claims(NOW), "PS256"), "signature")
    refused(signed(PSS, claims(NOW), "RS256", kid="rsa"), "signature")


@pytest.mark.parametrize(
    ("kid", "alg"), [("rsa", "ES256"), ("ec", "RS256"), ("ed", "ES256"), ("ec", "EdDSA"), ("pss", "RS256")]
)
def test_a_key_serves_its_own_algorithms_only(kid: str, alg: str) -> None:
    refused(signed(EC, claims(NOW), alg, kid=kid), "not that of the key")


def test_somebody_elses_signature_does_not_count() -> None:
    refused(signed(FOREIGN, claims(NOW)), "signature")
    text = signed(EC, claims(NOW))
    head, _, rest = text.partition(".")
    body, _, signature = rest.partition(".")
    changed = b64encode(json.dumps(claims(NOW, sub="1")).encode())
    refused(f"{head}.{changed}.{signature}", "signature")
    refused(f"{head}.{body}.{b64encode(bytes(64))}", "signature")
    refused(f"{head}.{body}.{b64encode(b64decode(signature) + bytes(1))}", "signature")


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "x5t"])
def test_a_key_that_the_header_brings_is_not_looked_at(name: str) -> None:
    value: Any = {"jwk": FOREIGN.jwk, "x5c": ["MIIB"], "x5t": "abc"}.get(name, "https://evil.example/keys")
    refused(signed(FOREIGN, claims(NOW), **{name: value}), "signature")
    assert judged(signed(EC, claims(NOW), **{name: value})).subject == "17"


@pytest.mark.parametrize("kid", [None, "", "k" * 257, 7, "../ec", "ec\0"])
def test_a_key_is_named_by_its_id(kid: Any) -> None:
    refused(signed(EC, claims(NOW), kid=kid), "names no key|no such key")


# The wrong form


@pytest.mark.parametrize("kind", ["logout+jwt", "dpop+jwt", "secevent+jwt", "token-introspection+jwt", "JOSE", 1, ""])
def test_tokens_for_other_purposes_do_not_count(kind: Any) -> None:
    refused(signed(EC, claims(NOW), typ=kind), "neither an access token nor an ID token")


@pytest.mark.parametrize("member", [{"crit": ["exp"]}, {"b64": False}, {"zip": "DEF"}, {"enc": "A256GCM"}, {"cty": "JWT"}])
def test_extensions_do_not_count(member: dict[str, Any]) -> None:
    refused(signed(EC, claims(NOW), **member), "extension")


def test_a_token_within_a_token_does_not_count() -> None:
    inner = signed(EC, claims(NOW))
    refused(signed(EC, inner.encode()), "strict form")
    refused(signed(EC, json.dumps(inner).encode()), "strict form")
    refused(f"{inner}.{inner}", "not a signed JWT")


@pytest.mark.parametrize(
    "content",
    [
        b"{}", b"[]", b"null", b"", b"{", b"\xff", b"[" * 5000, b'{"a":' * 1200, b'{"iat":NaN}', b'{"iat":1.5}',
        b'{"exp":' + b"9" * 5000 + b"}", b'{"sub":"\\ud800"}',
    ],
    ids=range(12),
)  # fmt: skip
def test_content_of_another_form_does_not_count(content: bytes) -> None:
    with pytest.raises(TokenRefused):
        judged(signed(EC, content))


def test_a_member_that_is_there_twice_does_not_count() -> None:
    text = json.dumps(claims(NOW))
    for name, value in (("iss", ISSUER), ("sub", "1"), ("aud", AUDIENCE), ("exp", NOW + 9)):
        doubled = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(value)}}}".encode()
        refused(compact(json.dumps({"alg": "ES256", "kid": "ec"}).encode(), doubled, EC.sign), "unique names")
    header = b'{"alg":"none","kid":"ec","alg":"ES256"}'
    refused(compact(header, text.encode(), EC.sign), "unique names")


def test_a_huge_token_does_not_count() -> None:
    refused(signed(EC, claims(NOW, groups=["g" * MAX_CHARS])), "more than 8192")
    refused(signed(EC, claims(NOW), kid="k" * 5000), "header is too large")
    refused("a." * 4000, "not a signed JWT")


@pytest.mark.parametrize(
    "change",
    [lambda text: text + "=", lambda text: text + "\n", lambda text: " " + text, lambda text: text.replace(".", "..", 1)],
)
def test_another_spelling_of_a_token_does_not_count(change: Callable[[str], str]) -> None:
    with pytest.raises(TokenRefused):
        judged(change(signed(EC, claims(NOW))))


def test_stray_bits_at_the_end_of_a_signature_do_not_count() -> None:
    text = signed(EC, claims(NOW))  # 64 bytes: the last character has 4 bits that must be zero
    last = "AQgw".index(text[-1])
    refused(text[:-1] + "BRhx"[last], "strict form")


@given(st.text(max_size=60))
def test_any_text_is_refused_and_nothing_worse(text: str) -> None:
    for each in (text, f"{text}.{text}.{text}", b64encode(text.encode("utf-8", "replace")) + ".e30.AA"):
        with pytest.raises(TokenRefused):
            judged(each)


# The wrong content


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"iss": "https://id.example/realms/other"}, "another issuer"),
        ({"iss": ISSUER + "/"}, "another issuer"),
        ({"iss": ISSUER.upper()}, "another issuer"),
        ({"iss": [ISSUER]}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"aud": "another"}, "another audience"),
        ({"aud": []}, "another audience"),
        ({"aud": None}, "another audience"),
        ({"aud": {AUDIENCE: 1}}, "another audience"),
        ({"aud": [AUDIENCE.upper()]}, "another audience"),
        ({"aud": [AUDIENCE] * 17}, "another audience"),
        ({"aud": f"{AUDIENCE} other"}, "another audience"),
        ({"exp": None}, "no time 'exp'"),
        ({"exp": str(NOW + 99)}, "no time 'exp'"),
        ({"exp": True}, "no time 'exp'"),
        ({"iat": None}, "no time 'iat'"),
        ({"nbf": "soon"}, "no time 'nbf'"),
        ({"events": {}}, "neither an access token nor"),
        ({"typ": "Refresh"}, "neither an access token nor"),
        ({"typ": ["ID"]}, "neither an access token nor"),
        ({"cnf": {"jkt": "x"}}, "bound to a key"),
        ({"sub": None}, "no subject"),
        ({"sub": ""}, "no subject"),
        ({"sub": 17}, "no subject"),
        ({"sub": "a\0"}, "no subject"),
        ({"sub": "17\n"}, "no subject"),
        ({"sub": "ä"}, "no subject"),
        ({"sub": "a" * 256}, "no subject"),
        ({"sub": "desk"}, "a program's"),
        ({"azp": "17"}, "a program's"),
        ({"idtyp": "app"}, "a program's"),
    ],
)  # fmt: skip
def test_claims_that_do_not_count(changed: dict[str, Any], why: str) -> None:
    refused(signed(EC, claims(NOW, **changed)), why)


def test_time_decides_to_the_second() -> None:
    text = signed(EC, claims(NOW, exp=NOW + 60, nbf=NOW, iat=NOW))
    assert judged(text, now=NOW + 59).subject == "17"
    refused(text, "has expired", now=NOW + 60)
    refused(text, "has expired", now=NOW + 61)
    assert judged(text, now=NOW - LEEWAY_S).subject == "17"
    refused(text, "does not count yet", now=NOW - LEEWAY_S - 1)
    refused(signed(EC, claims(NOW, nbf=NOW + LEEWAY_S + 1)), "does not count yet")


def test_an_old_token_does_not_count_however_long_it_says() -> None:
    text = signed(EC, claims(NOW, iat=NOW, exp=NOW + 10**8))
    assert judged(text, now=NOW + 7199).subject == "17"
    refused(text, "older than 7200 s", now=NOW + 7200)
    refused(text, "older than 60 s", replace(PROVIDER, max_age_s=60), NOW + 60)


def test_a_refusal_quotes_nothing_of_the_token() -> None:
    for text in (
        signed(EC, claims(NOW, iss="x-secret")),
        signed(EC, claims(NOW), "x-secret"),
        signed(EC, b"x-secret"),
        "x-secret.x.x",
    ):
        with pytest.raises(TokenRefused) as caught:
            judged(text)
        assert "x-secret" not in str(caught.value)


# The provider's documents


def test_the_configuration_is_that_of_the_issuer() -> None:
    good = {"issuer": ISSUER, "jwks_uri": "https://id.example/keys"}
    assert keys_url(json.dumps(good).encode(), ISSUER) == "https://id.example/keys"
    for changed in ({"issuer": ISSUER + "/"}, {"issuer": None}, {"jwks_uri": None}, {"jwks_uri": ["https://id.example"]}):
        with pytest.raises(DocumentRefused):
            keys_url(json.dumps(good | changed).encode(), ISSUER)
    for data in (b"", b"[]", b"<html>", b'{"issuer":"a","issuer":"a"}'):
        with pytest.raises(DocumentRefused):
            keys_url(data, ISSUER)


WRONG_KEYS = {
    "no kid": {**EC.jwk, "kid": None},
    "encryption": {**EC.jwk, "use": "enc"},
    "no verifying": {**EC.jwk, "key_ops": ["sign"]},
    "another alg": {**EC.jwk, "alg": "ES512"},
    "alg of another form": {**EC.jwk, "alg": ["ES256"]},
    "another curve": {**EC.jwk, "crv": "P-384"},
    "not on the curve": {**EC.jwk, "y": EC.jwk["x"]},
    "short": {**EC.jwk, "x": "AA"},
    "symmetric": {"kty": "oct", "k": b64encode(bytes(32)), "kid": "ec"},
    "x25519": {**ED.jwk, "crv": "X25519"},
    "small RSA": rsa256("rsa", 1024).jwk,
    "exponent of one": {**RSA.jwk, "e": "AQ"},
    "huge modulus": {**RSA.jwk, "n": b64encode(b"\xff" * 1025)},
    "huge exponent": {**RSA.jwk, "e": b64encode(b"\x01" * 5)},
    "number": {**RSA.jwk, "n": 5},
    "unknown": {"kty": "AKP", "kid": "pq", "pub": "AA"},
    "no object": "ec",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_KEYS)
def test_a_key_that_cannot_be_used_is_passed_over(name: str) -> None:
    with pytest.raises(DocumentRefused, match="no key"):
        keys_of(json.dumps({"keys": [WRONG_KEYS[name]]}).encode())
    other = es256("other")
    assert set(keys_of(json.dumps({"keys": [WRONG_KEYS[name], other.jwk]}).encode())) == {"other"}


def test_two_keys_with_one_id_do_not_count() -> None:
    other = es256("other")
    assert set(keys_of(key_set(EC, rsa256("ec"), other, EC))) == {"other"}


def test_a_private_key_is_read_as_a_public_one() -> None:
    (key,) = keys_of(json.dumps({"keys": [{**EC.jwk, "d": EC.jwk["x"]}]}).encode()).values()
    assert not key.public.is_private


@pytest.mark.parametrize("data", [b"{}", b'{"keys":{}}', b'{"keys":[]}', json.dumps({"keys": [EC.jwk] * 65}).encode()])
def test_a_key_set_of_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentRefused):
        keys_of(data)
