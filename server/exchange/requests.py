"""Parses and verifies the requests that agents sign. Pure.

It uses joserfc and not the agent's own parser, so that each side tests the other against the standards.
"""

from typing import Any

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from contracts.exchange import MAX_REQUEST_CHARS


class NotReadable(Exception):
    """The request is not a JWS of our form; the text says what is wrong. No key was used."""


class NotAuthentic(Exception):
    """The request has our form, but the agent's key did not sign it."""


def open_signed(text: str, kind: str, kid: str, key: dict[str, str]) -> dict[str, Any]:
    """Verifies the header and the signature of a request, and returns its content.

    Args:
        text: JWS in compact serialization.
        kind: the `typ` that it must have.
        kid: the key id that it must have.
        key: public JWK that must have signed it; empty if none is registered, and then nothing verifies.

    Raises:
        NotReadable: it has another form.
        NotAuthentic: another key signed it, or it names another key.
    """
    header, content = parse_signed(text)
    if header != {"alg": "ES256", "typ": kind, "kid": header["kid"]}:
        raise NotReadable(f"its header must have alg ES256, typ {kind}, kid, and no other member")
    if header["kid"] != kid:
        raise NotAuthentic("its kid is another agent's")
    try:
        jws.deserialize_compact(text, ECKey.import_key({**public_part(key)}), algorithms=["ES256"])
    except (JoseError, ValueError, KeyError):
        raise NotAuthentic("the registered key has not signed it") from None
    return content


def parse_signed(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parses a request without verifying it; returns header and content.

    Raises:
        NotReadable: it is not a JWS around a JSON object, or has no `kid`.
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
    """The public members of a P-256 JWK."""
    return {name: key[name] for name in ("kty", "crv", "x", "y")}
