"""Parses and verifies the requests that agents sign. Pure.

It does not use the agent's parser of signed texts; tests compare it with joserfc.
"""

from typing import Any

import msgspec

from contracts.exchange import MAX_REQUEST_CHARS
from contracts.jose import MalformedToken, b64decode
from server.keys import es256


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
    require_authentic(header, text, kind, kid, key)
    return content


def require_authentic(header: dict[str, Any], text: str, kind: str, kid: str, key: dict[str, str]) -> None:
    """Returns if header and signature are right; `header` is what `parse_signed` found. Raises as `open_signed`."""
    if header != {"alg": "ES256", "typ": kind, "kid": header["kid"]}:
        raise NotReadable(f"its header must have alg ES256, typ {kind}, kid, and no other member")
    if header["kid"] != kid:
        raise NotAuthentic("its kid is another agent's")
    signed, _, signature = text.rpartition(".")
    try:
        public = public_part(key)
        if (public["kty"], public["crv"]) != ("EC", "P-256"):
            raise ValueError("not a P-256 key")
        genuine = es256.verifies(es256.public_key(public["x"], public["y"]), signed.encode(), b64decode(signature))
    except (MalformedToken, ValueError, KeyError):
        genuine = False
    if not genuine:
        raise NotAuthentic("the registered key has not signed it")


def parse_signed(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parses a request without verifying it; returns header and content.

    Raises:
        NotReadable: it is not a JWS around a JSON object, or has no `kid`.
    """
    parts = text.split(".") if len(text) <= MAX_REQUEST_CHARS and text.isascii() else []
    if len(parts) != 3:
        raise NotReadable("it must be a JWS in compact serialization")
    try:
        header, content = (msgspec.json.decode(b64decode(part)) for part in parts[:2])
        b64decode(parts[2])
    except (MalformedToken, ValueError, RecursionError):
        raise NotReadable("it must be a JWS in compact serialization around a JSON object") from None
    if not isinstance(header, dict) or not isinstance(header.get("kid"), str) or not isinstance(content, dict):
        raise NotReadable("it must be a JWS with a kid, around a JSON object")
    return header, content


def public_part(key: dict[str, str]) -> dict[str, str]:
    """The public members of a P-256 JWK."""
    return {name: key[name] for name in ("kty", "crv", "x", "y")}
