"""ES256 as the server's hot path makes and checks it, against joserfc."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.errors import BadSignatureError
from joserfc.jwk import ECKey

from contracts.jose import b64decode, b64encode
from server.exchange.requests import NotReadable, parse_signed
from server.keys import es256
from server.keys.jose import new_signing_key

JWK = new_signing_key()
PRIVATE = ECKey.import_key({**JWK})
KEY = PRIVATE.private_key
HEADER = {"alg": "ES256", "typ": "x", "kid": "k"}


@given(st.binary(max_size=200))
def test_joserfc_verifies_what_is_signed_here(payload: bytes) -> None:
    assert isinstance(KEY, ec.EllipticCurvePrivateKey)
    text = es256.sign(KEY, b64encode(b'{"alg":"ES256","typ":"x","kid":"k"}'), payload)
    opened = jws.deserialize_compact(text, PRIVATE, algorithms=["ES256"])
    assert (opened.payload, opened.headers()) == (payload, HEADER)


@given(st.binary(max_size=200), st.integers(0, 63), st.integers(1, 255))
def test_both_verify_the_same_signatures(payload: bytes, place: int, change: int) -> None:
    text = jws.serialize_compact(HEADER, payload, PRIVATE, algorithms=["ES256"])
    signed, _, signature = text.rpartition(".")
    public = es256.public_key(JWK["x"], JWK["y"])
    assert es256.verifies(public, signed.encode(), b64decode(signature))
    changed = bytearray(b64decode(signature))
    changed[place] ^= change
    assert not es256.verifies(public, signed.encode(), bytes(changed))
    with pytest.raises(BadSignatureError):
        jws.deserialize_compact(f"{signed}.{b64encode(bytes(changed))}", PRIVATE, algorithms=["ES256"])


@pytest.mark.parametrize("size", [0, 63, 65, 128])
def test_a_signature_of_another_size_verifies_nothing(size: int) -> None:
    assert not es256.verifies(es256.public_key(JWK["x"], JWK["y"]), b"a.b", bytes(size))


POINTS = {
    "empty": ("", ""),
    "short": ("AA", "AA"),
    "no base64": ("!", "!"),
    "not on the curve": (JWK["x"], JWK["x"]),
    "padded": (JWK["x"] + "=", JWK["y"]),
}


@pytest.mark.parametrize(("x", "y"), POINTS.values(), ids=POINTS)
def test_what_is_no_point_is_no_key(x: str, y: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        es256.public_key(x, y)


def test_a_text_that_decodes_but_is_not_canonical_is_not_read() -> None:
    header = base64.urlsafe_b64encode(b'{"alg":"ES256","typ":"xyz","kid":"k"}').rstrip(b"=").decode()
    content = b64encode(b"{}")
    assert parse_signed(f"{header}.{content}.AA")[0]["kid"] == "k"
    for text in (f"{header}=.{content}.AA", f"{header}.{content}.AB", f"{header}.{content}.A", f"{header}\n.{content}.AA"):
        with pytest.raises(NotReadable):
            parse_signed(text)
