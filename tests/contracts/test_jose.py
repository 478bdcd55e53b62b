"""A text means one thing or is refused: one form of base64url, one reading of JSON, one kind of key."""

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.jose import (
    BadSignature,
    MalformedToken,
    b64decode,
    b64encode,
    jwk_from_point,
    parse_header,
    parse_json_object,
    point_from_jwk,
    public_key_from_jwk,
    thumbprint,
    verify_es256,
)
from tests.contracts.world import LICENSE_KEY, TRUST

PUBLIC = {name: LICENSE_KEY[name] for name in ("kty", "crv", "x", "y")}


@given(st.binary(max_size=70))
def test_base64url_goes_round(data: bytes) -> None:
    text = b64encode(data)
    assert text == base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    assert b64decode(text) == data


@given(st.binary(min_size=1, max_size=40), st.data())
def test_no_two_texts_mean_the_same_bytes(data: bytes, more: st.DataObject) -> None:
    text = b64encode(data)
    place = more.draw(st.integers(0, len(text) - 1))
    other = text[:place] + more.draw(st.characters(max_codepoint=0x100)) + text[place + 1 :]
    if other != text:
        with contextlib.suppress(MalformedToken):
            assert b64decode(other) != data


@pytest.mark.parametrize(
    "text", ["YQ==", "YR", "Y", "YQ=", "+/+/", " YQ", "YQ\n", "Y Q", "YQé", "\ud800", "YWI_ ", "YQ.", "=", "\0"]
)
def test_another_form_of_base64url_is_refused(text: str) -> None:
    with pytest.raises(MalformedToken):
        b64decode(text)


@given(st.text(max_size=30))
def test_random_text_is_base64url_or_malformed(text: str) -> None:
    with contextlib.suppress(MalformedToken):
        assert b64encode(b64decode(text)) == text


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":1.5}',
        b'{"a":1e2}',
        b'{"a":-0.0}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"[]",
        b'"a"',
        b"1",
        b"null",
        b"",
        b"{",
        b'{"a":1} x',
        b"{'a':1}",
        b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
        b'{"a":"\n"}',
    ],
    ids=lambda data: repr(data[:16]),
)
def test_loose_json_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedToken, match="thing"):
        parse_json_object(data, "thing")


def test_plain_json_is_read() -> None:
    assert parse_json_object(b' {"a": [1, -2, "\\u00e9"], "b": null} ', "thing") == {"a": [1, -2, "é"], "b": None}


@given(st.binary(max_size=60))
def test_random_bytes_are_an_object_or_malformed(data: bytes) -> None:
    with contextlib.suppress(MalformedToken):
        assert isinstance(parse_json_object(data, "thing"), dict)


def header(value: Any) -> str:
    return b64encode(json.dumps(value).encode())


EXPECTED = {"alg": "ES256", "kid": None}


def test_a_header_has_exactly_its_members() -> None:
    assert parse_header(header({"kid": 5, "alg": "ES256"}), EXPECTED, "header") == {"alg": "ES256", "kid": 5}
    for wrong in (
        {"alg": "ES256"},
        {"alg": "ES256", "kid": "k", "crit": []},
        {"alg": "none", "kid": "k"},
        {"alg": "es256", "kid": "k"},
        {"alg": ["ES256"], "kid": "k"},
        {},
    ):
        with pytest.raises(MalformedToken):
            parse_header(header(wrong), EXPECTED, "header")


def test_the_text_of_an_error_can_always_be_written_down() -> None:
    # It goes to the audit log and to the administrator as UTF-8.
    with pytest.raises(MalformedToken) as caught:
        parse_header(header({"alg": "ES256", "\ud800": 1}), EXPECTED, "header")
    assert str(caught.value).encode("utf-8")


def test_a_key_goes_round() -> None:
    point = point_from_jwk(PUBLIC)
    assert len(point) == 65
    assert jwk_from_point(point) == PUBLIC
    assert public_key_from_jwk(PUBLIC).public_numbers().x == int.from_bytes(point[1:33], "big")


@pytest.mark.parametrize(
    "change",
    [
        {"kty": "RSA"},
        {"kty": "oct"},
        {"crv": "P-384"},
        {"crv": "secp256k1"},
        {"crv": None},
        {"x": 5},
        {"x": ""},
        {"x": "A" * 42},
        {"x": "A" * 44},
        {"x": "A" * 42 + "="},
        {"x": "A" * 42 + "B"},
        {"x": "é" * 43},
        {"x": "A" * 43, "y": "A" * 43},
        {"y": "A" * 43},
        {"x": b64encode(b"\xff" * 32)},
    ],
    ids=repr,
)
def test_what_is_no_point_of_the_curve_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        public_key_from_jwk({**PUBLIC, **change})


def test_the_thumbprint_is_that_of_the_standard() -> None:
    # Computed by jwcrypto over the same key; further members do not count.
    from jwcrypto.jwk import JWK

    assert thumbprint(PUBLIC) == JWK(**PUBLIC).thumbprint() == thumbprint({**PUBLIC, "kid": "x", "use": "sig"})


@given(st.binary(max_size=80))
def test_a_random_signature_is_bad(signature: bytes) -> None:
    (key,) = TRUST.license_keys.values()
    for candidate in (signature, (signature * 64)[:64], bytes(64), b"\xff" * 64):
        with pytest.raises(BadSignature):
            verify_es256(key, candidate, b"data")
