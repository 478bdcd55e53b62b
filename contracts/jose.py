"""Parses the few parts of JOSE that the agent accepts, strictly. Pure.

Sources: RFC 7515 (JWS), RFC 7516 (JWE), RFC 7517 (JWK), RFC 7518 (algorithms), RFC 8725 (best practice). Algorithms are fixed
by the caller and never read from a token. Base64url is accepted in its one canonical form only (RFC 4648, 3.5), so that no two
texts mean the same token.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from common.plain import json_text

ES256_SIGNATURE_BYTES = 64
_ECDSA_SHA256 = ec.ECDSA(hashes.SHA256())


class MalformedToken(Exception):
    """The text does not have the form that the server issues; the message says where. No key was used."""


class BadSignature(Exception):
    """The text has our form, but the holder of the key has not made it, or somebody has changed it."""


def b64encode(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


# The URL-safe alphabet as the standard one; what is only in the standard one becomes a byte that no alphabet has.
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/\0\0\0")
_PADDING = ("", None, "==", "=")
# The last character of a text whose length is not a multiple of 4 carries 4 or 2 bits that must be zero (RFC 4648, 3.5).
_LAST_OF_TWO = frozenset("AQgw")
_LAST_OF_THREE = frozenset("AEIMQUYcgkosw048")


def b64decode(text: str) -> bytes:
    """The bytes of canonical base64url without padding.

    Raises:
        MalformedToken: another alphabet, padding, or stray bits at the end.
    """
    rest = len(text) % 4
    padding = _PADDING[rest]
    if padding is None or (rest == 2 and text[-1] not in _LAST_OF_TWO) or (rest == 3 and text[-1] not in _LAST_OF_THREE):
        raise MalformedToken("a part is not canonical base64url")
    try:
        standard = text.encode("ascii").translate(_TO_STANDARD) + padding.encode("ascii")
        return binascii.a2b_base64(standard, strict_mode=True)
    except (binascii.Error, ValueError):
        raise MalformedToken("a part is not base64url") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is there twice")
    return result


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not an integer")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_refuse_number, parse_constant=_refuse_number)


def parse_json_object(data: bytes, what: str) -> dict[str, Any]:
    """Parses a JSON object (RFC 8259) in UTF-8 with unique names, integer numbers and texts that are Unicode only.

    JSON can write half a surrogate pair, `\\ud800`, which is no text: nothing could be encoded that contains it.

    Raises:
        MalformedToken: `data` is anything else; `what` names it in the message.
    """
    try:
        value = _decoder.decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedToken(f"the {what} is not a JSON object: {json_text(error)}") from None
    if not isinstance(value, dict):
        raise MalformedToken(f"the {what} is not a JSON object")
    if _SURROGATE.search(data) and not _is_text(value):
        raise MalformedToken(f"the {what} has a text that is not Unicode: half a surrogate pair")
    return value


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _is_text(value: dict[str, Any]) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_header(part: str, expected: Mapping[str, str | None], what: str) -> dict[str, Any]:
    """Parses a protected header, which must have exactly the expected members.

    Args:
        part: base64url.
        expected: member names; a text fixes the value, None leaves it to the caller.
        what: names the header in errors.

    Raises:
        MalformedToken: a member is missing, unknown (`crit`, `zip`, `jku` …) or has another value.
    """
    header = parse_json_object(b64decode(part), what)
    if header.keys() != expected.keys():
        odd = sorted(header.keys() ^ expected.keys())
        raise MalformedToken(
            f"the {what} must have the members {', '.join(sorted(expected))}; wrong: {ascii(', '.join(odd))[:100]}"
        )
    for name, value in expected.items():
        if value is not None and header[name] != value:
            raise MalformedToken(f"the {what}'s {name} must be {value}")
    return header


def public_key_from_jwk(jwk: Mapping[str, Any]) -> ec.EllipticCurvePublicKey:
    """The P-256 public key in a JWK (RFC 7518, 6.2.1).

    Raises:
        MalformedToken: another kind of key, or a point that is not on the curve.
    """
    return _public_key(point_from_jwk(jwk))


def point_from_jwk(jwk: Mapping[str, Any]) -> bytes:
    """The 65-byte uncompressed point in a P-256 JWK; whether it is on the curve is not checked here."""
    if jwk.get("kty") != "EC" or jwk.get("crv") != "P-256":
        raise MalformedToken("a key must be EC, P-256")
    x, y = jwk.get("x"), jwk.get("y")
    if not isinstance(x, str) or not isinstance(y, str) or len(x) != 43 or len(y) != 43:
        raise MalformedToken("a key's coordinates must be 43 characters of base64url")
    return b"\x04" + b64decode(x) + b64decode(y)


def jwk_from_point(point: bytes) -> dict[str, str]:
    """The JWK of a 65-byte uncompressed P-256 point."""
    return {"kty": "EC", "crv": "P-256", "x": b64encode(point[1:33]), "y": b64encode(point[33:])}


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """The id of a key: its JWK thumbprint (RFC 7638), SHA-256, base64url."""
    canonical = json.dumps({name: jwk[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":"), sort_keys=True)
    return b64encode(hashlib.sha256(canonical.encode()).digest())


def _public_key(point: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise MalformedToken("a key is not a point of P-256") from None


def verify_es256(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> None:
    """Verifies an ES256 signature (RFC 7518, 3.4).

    Raises:
        BadSignature: the key has not signed the data.
    """
    if len(signature) != ES256_SIGNATURE_BYTES:
        raise BadSignature("an ES256 signature has 64 bytes")
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(der, data, _ECDSA_SHA256)
    except InvalidSignature:
        raise BadSignature("the signature does not fit the key") from None
