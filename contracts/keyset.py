"""Verifies key sets: the server's keys, signed by its offline root. Pure.

A key set is a JWS (ES256) whose header has the root's public key. An agent knows the root by its pin, the SHA-256 of its SPKI,
and accepts a set with a higher number only. A set names the roots that may sign the next sets, so that a root can be replaced.
"""

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Meta

from .exchange import Number, Pem, Time, convert
from .jose import BadSignature, MalformedToken, b64decode, parse_header, parse_json_object, public_key_from_jwk, verify_es256
from .trust import MAX_KEYS, Trust, encode_trust, parse_trust

KEY_SET_TYPE = "key-set+jwt"
MAX_KEY_SET_CHARS = 64 * 1024
MAX_KEY_SETS = 8
"""Of one after the other, from a root that is trusted to the one that signed the last."""

Coordinate = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]
Pin = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]


class PublicJwk(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A public P-256 key with its id."""

    kid: Annotated[str, Meta(min_length=1, max_length=64)]
    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: Coordinate
    y: Coordinate


Keys = Annotated[tuple[PublicJwk, ...], Meta(min_length=1, max_length=MAX_KEYS)]


class KeySet(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Content of a key set. Times are seconds since 1970 UTC.

    Attributes:
        v: version of the protocol.
        number: grows with each set.
        issuer: what licenses carry as `iss`.
        issued_at: when it was signed.
        expires: when the agent should have the next set at the latest.
        license_keys: sign licenses.
        rotation_keys: sign replies and secret deliveries.
        enrollment_keys: enrollment tokens are encrypted to the first one.
        certificates: PEM; the issuing CAs and the roots.
        roots: pins of the roots that may sign the next sets.
    """

    v: Literal[1] = 1
    number: Number
    issuer: Annotated[str, Meta(min_length=1, max_length=128)]
    issued_at: Time
    expires: Time
    license_keys: Keys
    rotation_keys: Keys
    enrollment_keys: Keys
    certificates: Annotated[tuple[Pem, ...], Meta(min_length=1, max_length=8)]
    roots: Annotated[tuple[Pin, ...], Meta(min_length=1, max_length=4)]

    def trust(self) -> Trust:
        """The keys of this set that sign.

        Raises:
            MalformedToken: a key is not a point of the curve, or is there twice.
        """
        return parse_trust(self.trust_file())

    def trust_file(self) -> bytes:
        """The same as a trust file, which the sealed store holds."""
        license_keys, rotation_keys = (
            [msgspec.to_builtins(key) for key in keys] for keys in (self.license_keys, self.rotation_keys)
        )
        return encode_trust(self.issuer, license_keys, rotation_keys)


@dataclass(frozen=True, slots=True)
class SignedKeySet:
    """A verified key set, and the pin of the root that signed it."""

    content: KeySet
    root: str


def pin_of(spki: bytes) -> str:
    """The pin of a public key: `sha256:` and the SHA-256 of its SubjectPublicKeyInfo in DER, hex."""
    return "sha256:" + hashlib.sha256(spki).hexdigest()


def pin_of_jwk(jwk: dict[str, Any]) -> str:
    """The pin of a P-256 key in a JWK. Raises MalformedToken if it is not such a key."""
    return pin_of(public_key_from_jwk(jwk).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def verify_key_set(text: str, roots: tuple[str, ...], above: int = -1) -> SignedKeySet:
    """Verifies that a trusted root has signed a key set, and returns it.

    Args:
        text: JWS in compact serialization.
        roots: pins (`pin_of`) of the roots that may sign.
        above: the set must have a higher number than this.

    Raises:
        MalformedToken: the set has another form, or its number is not higher.
        BadSignature: no root in `roots` signed it.
    """
    parts = text.split(".", 3)
    if len(text) > MAX_KEY_SET_CHARS or not text.isascii() or len(parts) != 3:
        raise MalformedToken("malformed key set: it must be a JWS in compact serialization")
    protected, payload, signature = parts
    jwk = parse_header(protected, {"alg": "ES256", "typ": KEY_SET_TYPE, "jwk": None}, "key set's header")["jwk"]
    if not isinstance(jwk, dict) or jwk.keys() != {"kty", "crv", "x", "y"}:
        raise MalformedToken("the key set's header must carry the root's public key")
    root = pin_of_jwk(jwk)
    if root not in roots:
        raise BadSignature("the key set is signed by a root that this agent does not trust")
    verify_es256(public_key_from_jwk(jwk), b64decode(signature), f"{protected}.{payload}".encode("ascii"))
    content: KeySet = convert(parse_json_object(b64decode(payload), "key set"), KeySet, "key set")
    if content.number <= above:
        raise MalformedToken(f"the key set has number {content.number}; this agent has {above} already")
    content.trust()
    return SignedKeySet(content, root)


def verify_key_sets(text: str, roots: tuple[str, ...], above: int = -1) -> SignedKeySet:
    """Verifies the last of some key sets, one a line, and returns it. Those before it lead from a trusted root to its own.

    A set names the roots that may sign the next ones. One that no root signed which is trusted by then, or whose number is not
    higher than that of the set before, leads nowhere and is passed over: it may be there for machines that know less.

    Args:
        text: at most `MAX_KEY_SETS` sets, the oldest first, each as for `verify_key_set`.
        roots: pins of the roots that may sign the first one.
        above: every set that counts has a higher number than this.

    Raises:
        MalformedToken: the last set has another form, or its number is not higher; there are too many sets.
        BadSignature: no root that is trusted by then signed the last set.
    """
    *between, last = text.split("\n", MAX_KEY_SETS - 1)
    if "\n" in last:
        raise MalformedToken(f"there are more than {MAX_KEY_SETS} key sets")
    for each in between:
        with contextlib.suppress(MalformedToken, BadSignature):
            content = verify_key_set(each, roots, above).content
            roots, above = content.roots, content.number
    return verify_key_set(last, roots, above)
