"""Verifies a token of the OpenID provider. The checks are numbered in `verified`; nothing else admits a token. Pure.

Sources: OpenID Connect Core 3.1.3.7 (ID tokens), RFC 9068 (access tokens), RFC 8725 (best practice), RFC 7515. joserfc verifies
the signature; what it is given was parsed before by the strict parsers of `contracts.jose`. The header chooses a key of the
provider by its id, and nothing more: where it names or contains a key, that is not looked at.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from contracts.jose import MalformedToken, b64decode, parse_json_object
from server.accounts.provider import SUBJECT, Provider

from .keyset import ALGORITHMS, Key

MAX_CHARS = 8192
MAX_HEADER_BYTES = 4096
MAX_KID_CHARS = 256
LEEWAY_S = 30
"""How far the provider's clock may be ahead. None where a token ends: what has expired has expired."""
MAX_AUDIENCES = 16
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt", "application/jwt"})
"""Values of `typ`, in lower case: an ID token's and an access token's. Without `typ` it is an ID token."""
_KEYCLOAK_TYPES = frozenset({"Bearer", "ID"})
"""Values of the claim `typ`, which Keycloak tells its tokens apart by: a refresh token is not one of them."""


class TokenRefused(Exception):
    """The token does not count. The text says why, in words of ours; it quotes nothing of the token."""


@dataclass(frozen=True, slots=True)
class Vouched:
    """For whom the provider vouches."""

    issuer: str
    subject: str


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token that has the right form. Nobody has verified it yet.

    Attributes:
        text: the token.
        alg: one of `ALGORITHMS`.
        kid: the id of the key that it names.
        claims: what it claims.
    """

    text: str
    alg: str
    kid: str
    claims: Mapping[str, Any]


class _Registry(JWSRegistry):
    """The algorithms of `ALGORITHMS` and no other; members of the header that joserfc does not know do not matter."""

    max_header_length = MAX_HEADER_BYTES

    def __init__(self) -> None:
        super().__init__(algorithms=tuple(ALGORITHMS), strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        """The algorithm; without joserfc's warning about the older name of Ed25519, which providers use."""
        if name not in ALGORITHMS:
            raise TokenRefused("its algorithm is not allowed")
        return self.algorithms[name]


_registry = _Registry()


def looks_like_one(text: str) -> bool:
    """Whether a text may be a signed JWT, and so not one of this server's own tokens."""
    return text.count(".") == 2


def parsed(text: str) -> Unverified:
    """The parts of a token, before its signature is verified.

    Raises:
        TokenRefused: it is not a token of an allowed form and algorithm.
    """
    if len(text) > MAX_CHARS:
        raise TokenRefused(f"it has more than {MAX_CHARS} characters: let the provider put less into it")
    parts = text.split(".")
    if len(parts) != 3 or not all(parts):
        raise TokenRefused("it is not a signed JWT")
    try:
        head, content = b64decode(parts[0]), b64decode(parts[1])
        b64decode(parts[2])
        if len(head) > MAX_HEADER_BYTES:
            raise TokenRefused("its header is too large")
        header, claims = parse_json_object(head, "header"), parse_json_object(content, "claims")
    except MalformedToken:
        raise TokenRefused(
            "it is not a JWT in the strict form: base64url, and JSON with unique names and whole numbers"
        ) from None
    alg, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(alg, str) or alg not in ALGORITHMS:
        raise TokenRefused(f"its algorithm is not one of {', '.join(sorted(ALGORITHMS))}")
    if not isinstance(kid, str) or not 1 <= len(kid) <= MAX_KID_CHARS:
        raise TokenRefused("its header names no key ('kid')")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise TokenRefused("it is neither an access token nor an ID token ('typ')")
    # An extension that must be understood is not; a nested or encrypted token is not one of ours.
    if not header.keys().isdisjoint(("crit", "b64", "zip", "enc", "cty")):
        raise TokenRefused("its header has an extension that this server does not know")
    return Unverified(text, alg, kid, claims)


def verified(token: Unverified, key: Key, provider: Provider, now: int) -> Vouched:
    """For whom the provider vouches with this token.

    Args:
        token: of `parsed`.
        key: the provider's key with the token's `kid`.
        provider: the one in use.
        now: seconds since 1970 UTC.

    Raises:
        TokenRefused: it does not count.
    """
    # 1. The key is of the kind that the algorithm needs, and the provider has not reserved it for another one.
    if not key.serves(token.alg):
        raise TokenRefused("its algorithm is not that of the key that it names")
    # 2. The holder of the key has signed exactly this.
    try:
        jws.deserialize_compact(token.text, key.public, registry=_registry)
    except (JoseError, ValueError):
        raise TokenRefused("its signature does not verify") from None
    # 3. to 9. What was signed is for this server, now.
    check_claims(token.claims, provider, now)
    return Vouched(provider.issuer, token.claims["sub"])


def check_claims(claims: Mapping[str, Any], provider: Provider, now: int) -> None:
    """Returns if what a token claims makes it count: checks 3 to 9.

    Raises:
        TokenRefused: it does not.
    """
    # 3. The provider has issued it: letter by letter, because another issuer's subjects are other people.
    if claims.get("iss") != provider.issuer:
        raise TokenRefused("it is of another issuer")
    # 4. For this server.
    aud = claims.get("aud")
    audiences = [aud] if isinstance(aud, str) else aud
    if not isinstance(audiences, list) or len(audiences) > MAX_AUDIENCES or provider.audience not in audiences:
        raise TokenRefused("it is for another audience")
    # 5. It counts now, and was made a short while ago.
    begins, made, ends = claims.get("nbf", 0), _time(claims.get("iat"), "iat"), _time(claims.get("exp"), "exp")
    if ends <= now:
        raise TokenRefused("it has expired")
    if max(made, _time(begins, "nbf")) > now + LEEWAY_S:
        raise TokenRefused("it does not count yet; compare the provider's clock with the server's")
    if made <= now - provider.max_age_s:
        raise TokenRefused(f"it is older than {provider.max_age_s} s")
    # 6. It is a token to sign in with: a logout token has `events`, and Keycloak says which of its tokens it is.
    kind = claims.get("typ", "Bearer")
    if "events" in claims or not isinstance(kind, str) or kind not in _KEYCLOAK_TYPES:
        raise TokenRefused("it is neither an access token nor an ID token")
    # 7. Who has it may use it: one that is bound to a key needs a proof that this server does not ask for.
    if "cnf" in claims:
        raise TokenRefused("it is bound to a key ('cnf'); let the provider issue plain bearer tokens for this server")
    # 8. It says who.
    subject = claims.get("sub")
    if not isinstance(subject, str) or not re.fullmatch(SUBJECT, subject):
        raise TokenRefused("it has no subject ('sub') of 1 to 255 ASCII characters")
    # 9. It says so of a person: a client that signs in for itself is its own subject (RFC 9068, section 5), and could have been
    # given the id of somebody.
    if subject in (claims.get("client_id"), claims.get("azp")) or claims.get("idtyp") == "app":
        raise TokenRefused("it is a program's; programs sign in with tokens of this server")


def _time(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TokenRefused(f"it has no time {name!r}, in whole seconds")
    return value
