"""Parses and opens license tokens strictly: JWE (dir, A256GCM) around JWS (ES256). Pure.

    JWE header  {"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": "<agent id>/<secret version>"}
    JWS header  {"alg": "ES256", "typ": "license+jwt", "kid": "<issuer key id>"}

A forger needs both the secret that the agent shares with the server and the issuer's private key. `docs/protocol.md` shows how
to issue a token with any JOSE tool.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .claims import AGENT_ID, Claims, read_claims
from .jose import BadSignature, MalformedToken, b64decode, parse_header, verify_es256
from .trust import Trust

Key = bytes | bytearray | memoryview

MAX_TOKEN_CHARS = 16 * 1024
MAX_HEADER_CHARS = 512
MAX_VERSION = 2**32 - 1
LICENSE_TYPE = "license+jwt"

_OUTER = {"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": None}
_INNER = {"alg": "ES256", "typ": LICENSE_TYPE, "kid": None}
_KID = re.compile(rf"({AGENT_ID.pattern})/([1-9][0-9]{{0,9}})")


class WrongAudience(Exception):
    """The license is for another agent."""


class SealedToken(NamedTuple):
    """A token of the right form that is still encrypted.

    Attributes:
        agent_id: the agent that its header names.
        version: the secret version that opens it.
        protected: the header as received; associated data of the encryption.
        nonce: 12 bytes.
        ciphertext: ends with the 16-byte tag.
    """

    agent_id: str
    version: int
    protected: bytes
    nonce: bytes
    ciphertext: bytes


def key_id(agent_id: str, version: int) -> str:
    """The `kid` of tokens for an agent under a secret version."""
    return f"{agent_id}/{version}"


def parse_token(token: str) -> SealedToken:
    """Parses a token; cheap, and without any key.

    Raises:
        MalformedToken: the token has another form than the server issues.
    """
    if len(token) > MAX_TOKEN_CHARS or not token.isascii():
        raise MalformedToken(f"a token has at most {MAX_TOKEN_CHARS} ASCII characters")
    parts = token.split(".", 5)
    if len(parts) != 5:
        raise MalformedToken("a token has five parts (JWE compact serialization)")
    protected, encrypted_key, nonce, ciphertext, tag = parts
    if len(protected) > MAX_HEADER_CHARS:
        raise MalformedToken(f"the header has more than {MAX_HEADER_CHARS} characters")
    if encrypted_key:
        raise MalformedToken("the encrypted key must be empty (alg dir)")
    if len(nonce) != 16 or len(tag) != 22:
        raise MalformedToken("the nonce must have 12 bytes and the tag 16")
    agent_id, version = _addressee(protected)
    return SealedToken(agent_id, version, protected.encode("ascii"), b64decode(nonce), b64decode(ciphertext) + b64decode(tag))


@lru_cache(maxsize=64)
def _addressee(protected: str) -> tuple[str, int]:
    """Agent id and secret version of an outer header; the same header comes with every token of a secret."""
    kid = parse_header(protected, _OUTER, "token's header")["kid"]
    match = _KID.fullmatch(kid) if isinstance(kid, str) else None
    if match is None or int(match[2]) > MAX_VERSION:
        raise MalformedToken("kid must be an agent id, a slash and a secret version")
    return match[1], int(match[2])


@lru_cache(maxsize=64)
def _signer(protected: str) -> object:
    """The key id of an inner header; the same header comes with every token of an issuer."""
    return parse_header(protected, _INNER, "signature's header")["kid"]


def open_token(sealed: SealedToken, secret: Key, trust: Trust) -> Claims:
    """Decrypts a token, and verifies the issuer's signature and the form of the claims, but not their times.

    Args:
        sealed: from `parse_token`.
        secret: 32 bytes, the version that `sealed` names.
        trust: the keys that may sign.

    Raises:
        BadSignature: the token was not issued with both keys, or was changed.
        WrongAudience: it is signed for another agent.
        MalformedToken: it is genuine, but its claims have another form.
    """
    try:
        inner = AESGCM(secret).decrypt(sealed.nonce, sealed.ciphertext, sealed.protected)
    except InvalidTag:
        raise BadSignature("the token does not decrypt: it was changed, or made with another secret") from None
    try:
        protected, payload, signature = inner.decode("ascii").split(".")
    except ValueError:
        raise MalformedToken("the content is not a JWS in compact serialization") from None
    if len(protected) > MAX_HEADER_CHARS:
        raise MalformedToken(f"the signature's header has more than {MAX_HEADER_CHARS} characters")
    kid = _signer(protected)
    signed = inner[: len(protected) + 1 + len(payload)]
    verify_es256(trust.license_key(kid), b64decode(signature), signed)
    claims = read_claims(b64decode(payload))
    if claims.iss != trust.issuer:
        raise BadSignature("the issuer is not the one that this agent trusts")
    if claims.aud != sealed.agent_id:
        raise WrongAudience("the license is for another agent than its envelope says")
    return claims
