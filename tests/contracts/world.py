"""Keys, a trust and licenses for the tests of tokens and deliveries."""

from dataclasses import replace
from typing import Any

from contracts.claims import Claims
from contracts.trust import Trust, encode_trust, parse_trust
from server.keys.jose import issue_delivery, issue_token, new_signing_key, public_jwk

ISSUER = "https://license.example"
AGENT = "pos-001"
SECRET = bytes(range(32))
LICENSE_KEY = new_signing_key()
DELIVERY_KEY = new_signing_key()
AGREEMENT_KEY = new_signing_key()
TRUST_FILE = encode_trust(ISSUER, [public_jwk(LICENSE_KEY)], [public_jwk(DELIVERY_KEY)])
TRUST: Trust = parse_trust(TRUST_FILE)
CLAIMS = Claims(
    iss=ISSUER,
    sub="shop 12",
    aud=AGENT,
    iat=1_800_000_000,
    nbf=1_800_000_000,
    exp=1_900_000_000,
    jti="license-1",
    features=("till", "scale"),
    metadata={"shop": "Bürgerstraße"},
)
DATES = {
    "valid_from": 1_800_000_000,
    "valid_until": 1_800_086_400,
    "grace_until": 1_800_691_200,
    "issued_at": 1_800_000_000,
}


def token(claims: Claims = CLAIMS, secret: bytes = SECRET, version: int = 3, **changes: Any) -> str:
    return issue_token(replace(claims, **changes), secret, version, LICENSE_KEY)


def delivery(
    agent: str = AGENT, version: int = 4, secret: bytes = SECRET, key: dict[str, str] = DELIVERY_KEY, **dates: int
) -> str:
    return issue_delivery(agent, version, {**DATES, **dates}, secret, public_jwk(AGREEMENT_KEY), key)
