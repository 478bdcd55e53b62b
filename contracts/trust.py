"""Parses trust files: the keys whose signatures an agent accepts. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from .jose import BadSignature, MalformedToken, parse_json_object, public_key_from_jwk

MAX_KEYS = 16


@dataclass(frozen=True, slots=True)
class Trust:
    """The issuer's name and its public keys, by key id.

    Attributes:
        issuer: what licenses carry as `iss`.
        license_keys: sign licenses.
        delivery_keys: sign secret deliveries.
    """

    issuer: str
    license_keys: Mapping[str, ec.EllipticCurvePublicKey]
    delivery_keys: Mapping[str, ec.EllipticCurvePublicKey]

    def license_key(self, kid: object) -> ec.EllipticCurvePublicKey:
        """The key with this id that signs licenses. Raises BadSignature if there is none."""
        return _find(self.license_keys, kid)

    def delivery_key(self, kid: object) -> ec.EllipticCurvePublicKey:
        """The key with this id that signs deliveries. Raises BadSignature if there is none."""
        return _find(self.delivery_keys, kid)


def _find(keys: Mapping[str, ec.EllipticCurvePublicKey], kid: object) -> ec.EllipticCurvePublicKey:
    key = keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        raise BadSignature("signed by a key that this agent does not trust")
    return key


def encode_trust(issuer: str, license_keys: list[dict[str, str]], delivery_keys: list[dict[str, str]]) -> bytes:
    """The trust file: JSON with public JWKs, each with its `kid`."""
    content = {"issuer": issuer, "license_keys": license_keys, "delivery_keys": delivery_keys}
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"


def parse_trust(data: bytes) -> Trust:
    """Parses a trust file.

    Raises:
        MalformedToken: it is not a trust file; the text says why.
    """
    content = parse_json_object(data, "trust file")
    if content.keys() != {"issuer", "license_keys", "delivery_keys"}:
        raise MalformedToken("the trust file must have issuer, license_keys and delivery_keys")
    issuer = content["issuer"]
    if not isinstance(issuer, str) or not issuer:
        raise MalformedToken("the trust file's issuer must be a text")
    return Trust(issuer, _keys(content["license_keys"]), _keys(content["delivery_keys"]))


def _keys(value: Any) -> dict[str, ec.EllipticCurvePublicKey]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_KEYS:
        raise MalformedToken(f"the trust file must list 1 to {MAX_KEYS} keys of each kind")
    keys = {}
    for jwk in value:
        if not isinstance(jwk, dict) or not isinstance(jwk.get("kid"), str) or "d" in jwk:
            raise MalformedToken("each key in the trust file must be a public JWK with a kid")
        if jwk["kid"] in keys:
            raise MalformedToken(f"the trust file names the key {ascii(jwk['kid'])[:60]} twice")
        keys[jwk["kid"]] = public_key_from_jwk(jwk)
    return keys


def joined_trust(new: bytes, former: bytes) -> bytes:
    """A trust file with the keys of a new one, and those of the former one as far as there is room. Raises as `parse_trust`."""
    contents = [parse_json_object(data, "trust file") for data in (new, former)]
    lists: dict[str, list[dict[str, str]]] = {}
    for name in ("license_keys", "delivery_keys"):
        keys = list(contents[0][name])
        known = {jwk["kid"] for jwk in keys}
        lists[name] = [*keys, *(jwk for jwk in contents[1][name] if jwk["kid"] not in known)][:MAX_KEYS]
    made = encode_trust(contents[0]["issuer"], lists["license_keys"], lists["delivery_keys"])
    parse_trust(made)
    return made
