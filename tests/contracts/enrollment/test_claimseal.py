"""A claim encrypted here is opened by joserfc, with the server's key only, and only as it was."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from contracts.enrollment.claimseal import encrypt_claim
from contracts.enrollment.enrollment import Claim
from contracts.jose import MalformedToken, thumbprint
from contracts.keyset import PublicJwk

SERVER = ECKey.generate_key("P-256", private=True)
CLAIM = Claim(claim="a claim of the server", hw_id="ab" * 32, attestation="cd" * 32)
ALGORITHMS = ["ECDH-ES", "A256GCM"]


def _public(key: ECKey) -> PublicJwk:
    full = key.as_dict(private=False)
    jwk = {name: str(full[name]) for name in ("kty", "crv", "x", "y")}
    return msgspec.convert(jwk | {"kid": thumbprint(jwk)}, PublicJwk)


def _sealed() -> str:
    return encrypt_claim(CLAIM, _public(SERVER), ec.generate_private_key(ec.SECP256R1()), bytes(range(12)))


def test_the_server_opens_it_and_finds_what_it_is_bound_to() -> None:
    opened = jwe.decrypt_compact(_sealed(), SERVER, algorithms=ALGORITHMS)
    assert opened.plaintext is not None
    assert msgspec.json.decode(opened.plaintext, type=Claim) == CLAIM
    assert opened.headers()["alg"] == "ECDH-ES" and opened.headers()["kid"] == _public(SERVER).kid


def test_nobody_else_does() -> None:
    with pytest.raises((JoseError, ValueError)):
        jwe.decrypt_compact(_sealed(), ECKey.generate_key("P-256", private=True), algorithms=ALGORITHMS)


def test_two_of_one_claim_have_nothing_in_common_but_the_form() -> None:
    first, second = _sealed().split("."), _sealed().split(".")
    assert first[0] != second[0] and first[3] != second[3] and len(first) == len(second) == 5


@pytest.mark.parametrize("place", [0, 3, 4])
def test_no_part_can_be_changed(place: int) -> None:
    parts = _sealed().split(".")
    middle = len(parts[place]) // 2
    parts[place] = parts[place][:middle] + ("A" if parts[place][middle] != "A" else "B") + parts[place][middle + 1 :]
    with pytest.raises((JoseError, ValueError, TypeError)):
        jwe.decrypt_compact(".".join(parts), SERVER, algorithms=ALGORITHMS)


def test_an_enrollment_key_that_is_no_point_is_refused() -> None:
    bad = PublicJwk(kid="x", kty="EC", crv="P-256", x="A" * 43, y="A" * 43)
    with pytest.raises(MalformedToken):
        encrypt_claim(CLAIM, bad, ec.generate_private_key(ec.SECP256R1()), bytes(12))
