"""Checks the claims of a license. Pure.

An unknown claim is refused and not ignored: it may be a restriction that an older agent would not honor.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta

from common.text import forbidden_in

from .jose import MalformedToken, parse_json_object

AGENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Form of an agent id; the whole text must match."""

MAX_TIME = 253_402_300_799
"""31 December 9999, 23:59:59 UTC: the last second of four-digit years."""
MAX_FEATURES = 64
MAX_METADATA = 32
MAX_NAME_CHARS = 64
MAX_VALUE_CHARS = 256
MAX_ID_CHARS = 128

_NAMES = frozenset({"iss", "sub", "aud", "iat", "nbf", "exp", "jti", "features", "metadata"})


Time = Annotated[int, Meta(ge=0, le=MAX_TIME)]
IdText = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Value = Annotated[str, Meta(max_length=MAX_VALUE_CHARS)]


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a license (RFC 7519, 4.1), in the order in which our server writes them. Times are seconds since 1970 UTC.

    Attributes:
        aud: the agent id it is for.
        exp: the end of the license; in that second it is no longer valid.
        iat: when this token was issued; of two tokens of a license, the later one counts.
        iss: the license server.
        jti: the license's id; a re-issued token keeps it.
        metadata: what the issuer attaches for the POS application.
        nbf: the first second of the license.
        sub: who the license is for.
        features: what is licensed.
    """

    aud: IdText
    exp: Time
    iat: Time
    iss: IdText
    jti: IdText
    metadata: Annotated[dict[Name, Value], Meta(max_length=MAX_METADATA)]
    nbf: Time
    sub: IdText
    features: Annotated[tuple[Name, ...], Meta(max_length=MAX_FEATURES)]

    def as_json(self) -> dict[str, Any]:
        """The claims set that is signed."""
        return {name: getattr(self, name) for name in sorted(_NAMES - {"features"})} | {"features": list(self.features)}


_decode = msgspec.json.Decoder(Claims).decode
_encode = msgspec.json.Encoder().encode


def read_claims(payload: bytes) -> Claims:
    """The claims in the payload of a token.

    Raises:
        MalformedToken: as `parse_json_object` and `check_claims`.
    """
    return _read_as_issued(payload) or check_claims(parse_json_object(payload, "claims set"))


def _read_as_issued(payload: bytes) -> Claims | None:
    """The claims where they are within all bounds and encoded byte for byte as our server does it; None says nothing yet.

    The decoder alone would pass over a name that comes twice and a number with a point; what it made of the bytes would not be
    encoded as the same bytes then.
    """
    try:
        found = _decode(payload)
        as_issued = _encode(found) == payload
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    metadata = found.metadata
    texts = (found.iss, found.sub, found.aud, found.jti, *found.features, *metadata, *metadata.values())
    if not as_issued or found.exp <= found.nbf or forbidden_in("".join(texts)) is not None:
        return None
    return found


def check_claims(content: dict[str, Any]) -> Claims:
    """Checks that every claim is there, known, of its type and within its bounds.

    Raises:
        MalformedToken: one is not; the text names the claim.
    """
    if content.keys() != _NAMES:
        raise MalformedToken(f"claims missing or unknown: {ascii(', '.join(sorted(content.keys() ^ _NAMES)))[:100]}")
    features, metadata = content["features"], content["metadata"]
    if not isinstance(features, list) or len(features) > MAX_FEATURES:
        raise MalformedToken(f"features must be a list of at most {MAX_FEATURES} names")
    if not isinstance(metadata, dict) or len(metadata) > MAX_METADATA:
        raise MalformedToken(f"metadata must be an object of at most {MAX_METADATA} entries")
    nbf, exp = _time(content, "nbf"), _time(content, "exp")
    if exp <= nbf:
        raise MalformedToken("exp must be later than nbf")
    texts = [
        _text(content["iss"], "iss", MAX_ID_CHARS),
        _text(content["sub"], "sub", MAX_ID_CHARS),
        _text(content["aud"], "aud", MAX_ID_CHARS),
        _text(content["jti"], "jti", MAX_ID_CHARS),
        *[_text(feature, "a feature", MAX_NAME_CHARS) for feature in features],
        *[_text(key, "a metadata name", MAX_NAME_CHARS) for key in metadata],
        *[_text(value, "a metadata value", MAX_VALUE_CHARS, least=0) for value in metadata.values()],
    ]
    # All at once: one search of a long text costs a fraction of many searches of short ones.
    if forbidden_in("".join(texts)) is not None:
        _name_forbidden(content)
    return Claims(
        iss=texts[0],
        sub=texts[1],
        aud=texts[2],
        iat=_time(content, "iat"),
        nbf=nbf,
        exp=exp,
        jti=texts[3],
        features=tuple(features),
        metadata=metadata,
    )


def _text(value: object, name: str, most: int, least: int = 1) -> str:
    if not isinstance(value, str) or not least <= len(value) <= most:
        raise MalformedToken(f"{name} must be a text of {least} to {most} characters")
    return value


def _name_forbidden(content: dict[str, Any]) -> NoReturn:
    metadata = content["metadata"]
    named = [(name, content[name]) for name in ("iss", "sub", "aud", "jti")]
    named += [("a feature", feature) for feature in content["features"]]
    named += [("a metadata name", key) for key in metadata] + [("a metadata value", value) for value in metadata.values()]
    name, forbidden = next((name, found) for name, text in named if (found := forbidden_in(text)) is not None)
    raise MalformedToken(f"{name} has a character that no text of a license may have: {forbidden}")


def _time(content: dict[str, Any], name: str) -> int:
    value = content[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TIME:
        raise MalformedToken(f"{name} must be a time in whole seconds since 1970")
    return value
