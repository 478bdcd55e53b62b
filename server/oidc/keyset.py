"""Reads the provider's documents: its configuration, and the public keys that count. Pure.

A key that this server cannot use is passed over, and so are two keys with one id: a provider may have keys for other purposes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from contracts.jose import MalformedToken, b64decode, parse_json_object

MAX_KEYS = 64
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
MAX_EXPONENT_BYTES = 4
ALGORITHMS: dict[str, tuple[str, str | None]] = {
    "ES256": ("EC", "P-256"),
    "RS256": ("RSA", None),
    "PS256": ("RSA", None),
    "EdDSA": ("OKP", "Ed25519"),
    "Ed25519": ("OKP", "Ed25519"),
}
"""The algorithms of tokens, with the kind and curve of key that each needs."""
_KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "EC": (ECKey, ("crv", "x", "y")),
    "RSA": (RSAKey, ("n", "e")),
    "OKP": (OKPKey, ("crv", "x")),
}
"""For each kind of key: how joserfc reads it, and its public members. No other member is passed on."""


class DocumentRefused(Exception):
    """A document of the provider cannot be used. The text says why; it quotes nothing of the document."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of the provider.

    Attributes:
        kind: EC, RSA or OKP.
        curve: its curve; None for RSA.
        alg: the only algorithm that it is for; None if the provider does not say.
        public: for joserfc.
    """

    kind: str
    curve: str | None
    alg: str | None
    public: Any

    def serves(self, alg: str) -> bool:
        """Whether tokens with this algorithm may be verified with it."""
        same = self.alg is None or self.alg == alg or {self.alg, alg} == {"EdDSA", "Ed25519"}
        return same and ALGORITHMS.get(alg) == (self.kind, self.curve)


def keys_url(data: bytes, issuer: str) -> str:
    """Where the keys are, by the provider's configuration (OpenID Connect Discovery, section 4.3).

    Raises:
        DocumentRefused: it is not a configuration, or that of another issuer.
    """
    found = _document(data, "the configuration")
    if found.get("issuer") != issuer:
        raise DocumentRefused("the configuration is that of another issuer: give the issuer exactly as it is in 'issuer' there")
    url = found.get("jwks_uri")
    if not isinstance(url, str):
        raise DocumentRefused("the configuration does not say where the keys are ('jwks_uri')")
    return url


def keys_of(data: bytes) -> dict[str, Key]:
    """The keys of a key set (RFC 7517) that tokens may be verified with, by their ids.

    Raises:
        DocumentRefused: it is not a key set, or has no such key.
    """
    listed = _document(data, "the key set").get("keys")
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise DocumentRefused(f"the key set has no list of at most {MAX_KEYS} keys")
    found: dict[str, Key] = {}
    seen: set[str] = set()
    for each in listed:
        key = _key(each) if isinstance(each, dict) else None
        if key is None:
            continue
        kid = each["kid"]
        if kid in seen:
            found.pop(kid, None)
        else:
            found[kid] = key
        seen.add(kid)
    if not found:
        raise DocumentRefused(f"the key set has no key with a 'kid' of its own for {', '.join(sorted(ALGORITHMS))}")
    return found


def _document(data: bytes, what: str) -> dict[str, Any]:
    try:
        return parse_json_object(data, "document")
    except MalformedToken:
        raise DocumentRefused(f"{what} is not a JSON object with unique names") from None


def _key(jwk: Mapping[str, Any]) -> Key | None:
    """The key, if it can verify tokens."""
    kid, kind, alg = jwk.get("kid"), jwk.get("kty"), jwk.get("alg")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(kid, str) or not kid or not isinstance(kind, str) or kind not in _KINDS:
        return None
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    if alg is not None and (not isinstance(alg, str) or alg not in ALGORITHMS):
        return None
    reader, names = _KINDS[kind]
    members = {name: value for name in names if isinstance(value := jwk.get(name), str)}
    if len(members) != len(names):
        return None
    curve = members.get("crv")
    if (kind, curve) not in ALGORITHMS.values():
        return None
    try:
        if kind == "RSA" and not _is_fit(b64decode(members["n"]), b64decode(members["e"])):
            return None
        public = reader.import_key({"kty": kind, **members})
        _ = public.public_key  # reads its numbers: a point that is not on the curve ends here
    except (JoseError, MalformedToken, ValueError, TypeError):
        return None
    return Key(kind, curve, alg, public)


def _is_fit(modulus: bytes, exponent: bytes) -> bool:
    bits = int.from_bytes(modulus).bit_length()
    return MIN_RSA_BITS <= bits <= MAX_RSA_BITS and 1 <= len(exponent) <= MAX_EXPONENT_BYTES and int.from_bytes(exponent) >= 3
