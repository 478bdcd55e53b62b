"""A trust file names each key once: a second one under the same id would silently take the first one's place."""

import pytest

from contracts.jose import MalformedToken
from contracts.trust import encode_trust, parse_trust
from server.keys.jose import new_signing_key, public_jwk


def test_a_key_id_that_comes_twice_is_refused() -> None:
    first, second = public_jwk(new_signing_key()), public_jwk(new_signing_key())
    assert parse_trust(encode_trust("issuer", [first, second], [first]))
    with pytest.raises(MalformedToken, match="twice"):
        parse_trust(encode_trust("issuer", [first, {**second, "kid": first["kid"]}], [first]))
