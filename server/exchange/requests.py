"""Reads what agents sign, with joserfc: not the agent's own parser, so that the two hold each other to the standards. No IO."""

from typing import Any

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from contracts.exchange import MAX_REQUEST_CHARS


class NotReadable(Exception):
    """It is no JWS of our form; the text says where. No key has been used."""


class NotAuthentic(Exception):
    """It is of our form, and the key in question did not sign it."""


def open_signed(text: str, kind: str, kid: str, key: dict[str, str]) -> dict[str, Any]:
    """The content of a request, once its header and signature have been checked.

    Args:
        text: JWS in compact serialization.
        kind: its `typ`.
        kid: its key id.
        key: public JWK that must have signed it; empty if none is registered.

    Raises:
        NotReadable: it is not of our form.
        NotAuthentic: another key signed it, or it names another one.
    """
    header, content = parse_signed(text)
    if header != {"alg": "ES256", "typ": kind, "kid": header["kid"]}:
        raise NotReadable(f"its header must be alg ES256, typ {kind} and kid, and nothing else")
    if header["kid"] != kid:
        raise NotAuthentic("it names another signer than the one that sent it")
    try:
        jws.deserialize_compact(text, ECKey.import_key({**public_part(key)}), algorithms=["ES256"])
    except (JoseError, ValueError, KeyError):
        raise NotAuthentic("its signature does not fit the key that is registered") from None
    return content


def parse_signed(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and content of a request that nobody has checked yet.

    Raises:
        NotReadable: it is no JWS around a JSON object, or has no `kid`.
    """
    if len(text) > MAX_REQUEST_CHARS or not text.isascii() or text.count(".") != 2:
        raise NotReadable("it must be a JWS in compact serialization")
    try:
        parts = jws.extract_compact(text.encode())
        header, content = parts.headers(), msgspec.json.decode(parts.payload)
    except (JoseError, ValueError, TypeError, RecursionError):
        raise NotReadable("it must be a JWS in compact serialization around a JSON object") from None
    if not isinstance(header, dict) or not isinstance(header.get("kid"), str) or not isinstance(content, dict):
        raise NotReadable("it must be a JWS with a kid, around a JSON object")
    return header, content


def public_part(key: dict[str, str]) -> dict[str, str]:
    """The members of a P-256 JWK that make the public key."""
    return {name: key[name] for name in ("kty", "crv", "x", "y")}
