"""Verifies and decrypts secret deliveries, from the server to one agent: JWS (ES256) around JWE (ECDH-ES, A256GCM). Pure.

The signed payload is the reply of a rotation: `agent_id`, `secret_version`, `valid_from`, `valid_until`, `grace_until`,
`issued_at` and `new_secret_encrypted`, a compact JWE of 32 raw bytes to the agent's key-agreement key. Direct key agreement
(RFC 7518, 4.6) leaves no wrapped key behind.
"""

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

from .claims import AGENT_ID, MAX_TIME
from .jose import (
    BadSignature,
    MalformedToken,
    b64decode,
    parse_header,
    point_from_jwk,
    public_key_from_jwk,
)
from .licensetoken import MAX_HEADER_CHARS, MAX_VERSION, Key, WrongAudience
from .statement import integer, verify_statement
from .trust import Trust

DELIVERY_TYPE = "secret-delivery+jwt"
SECRET_BYTES = 32

_ENCRYPTED = {"alg": "ECDH-ES", "enc": "A256GCM", "epk": None}
_MEMBERS = frozenset(
    {"agent_id", "secret_version", "valid_from", "valid_until", "grace_until", "issued_at", "new_secret_encrypted"}
)
# RFC 7518, 4.6.2: AlgorithmID, empty PartyUInfo and PartyVInfo, SuppPubInfo (256 bits).
OTHER_INFO = b"\0\0\0\x07A256GCM" + bytes(4) + bytes(4) + (256).to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class EncryptedSecret:
    """The JWE inside a delivery.

    Attributes:
        peer_point: the server's ephemeral public point, 65 bytes.
        protected: the header as received; associated data of the encryption.
        nonce: 12 bytes.
        ciphertext: 32 bytes and the tag.
    """

    peer_point: bytes
    protected: bytes
    nonce: bytes
    ciphertext: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """A verified delivery whose secret is still encrypted. Times are seconds since 1970 UTC.

    Attributes:
        agent_id: the agent that it is for.
        version: the secret's version.
        valid_from: when the secret becomes valid.
        valid_until: when its successor is due.
        grace_until: when licenses under it end at the latest.
        issued_at: when the server signed the delivery.
        encrypted: the secret, for the agent's key-agreement key only.
    """

    agent_id: str
    version: int
    valid_from: int
    valid_until: int
    grace_until: int
    issued_at: int
    encrypted: EncryptedSecret


def verify_delivery(delivery: str, agent_id: str, trust: Trust) -> Delivery:
    """Checks signature, addressee and form of a delivery.

    Raises:
        MalformedToken: the delivery has another form.
        BadSignature: no key that the agent trusts signed it.
        WrongAudience: it is for another agent.
    """
    content = verify_statement(delivery, DELIVERY_TYPE, _MEMBERS, "delivery", trust)
    if content["agent_id"] != agent_id or not AGENT_ID.fullmatch(agent_id):
        raise WrongAudience("the delivery is for another agent")
    jwe = content["new_secret_encrypted"]
    if not isinstance(jwe, str):
        raise MalformedToken("new_secret_encrypted must be a text")
    encrypted = _parse_jwe(jwe)
    times = {
        name: integer(content, name, 0, MAX_TIME, "delivery")
        for name in ("valid_from", "valid_until", "grace_until", "issued_at")
    }
    if not times["valid_from"] < times["valid_until"] <= times["grace_until"]:
        raise MalformedToken("the delivery's dates must be in the order valid_from, valid_until, grace_until")
    return Delivery(
        agent_id=agent_id,
        version=integer(content, "secret_version", 1, MAX_VERSION, "delivery"),
        valid_from=times["valid_from"],
        valid_until=times["valid_until"],
        grace_until=times["grace_until"],
        issued_at=times["issued_at"],
        encrypted=encrypted,
    )


def _parse_jwe(jwe: str) -> EncryptedSecret:
    parts = jwe.split(".", 5)
    if len(parts) != 5 or parts[1] or len(parts[0]) > MAX_HEADER_CHARS:
        raise MalformedToken("new_secret_encrypted is not a JWE with direct key agreement")
    protected, _, nonce, ciphertext, tag = parts
    epk = parse_header(protected, _ENCRYPTED, "secret's header")["epk"]
    if not isinstance(epk, dict) or epk.keys() != {"kty", "crv", "x", "y"}:
        raise MalformedToken("epk must be a public P-256 key")
    public_key_from_jwk(epk)  # so that no backend is asked to work with a point that is not on the curve
    result = EncryptedSecret(
        peer_point=point_from_jwk(epk),
        protected=protected.encode("ascii"),
        nonce=b64decode(nonce),
        ciphertext=b64decode(ciphertext) + b64decode(tag),
    )
    if len(result.nonce) != 12 or len(result.ciphertext) != SECRET_BYTES + 16:
        raise MalformedToken("the encrypted secret has a wrong size")
    return result


def decrypt_secret(encrypted: EncryptedSecret, shared: Key, key: bytearray | memoryview, into: bytearray | memoryview) -> None:
    """Decrypts the delivered secret in place.

    Args:
        encrypted: from a verified delivery.
        shared: x coordinate of the agreed point, 32 bytes.
        key: 32 bytes of the caller's secret memory, used for the content key; the caller wipes it.
        into: 32 bytes that receive the secret.

    Raises:
        BadSignature: it was not encrypted to this agent's key, or was changed.
    """
    ConcatKDFHash(hashes.SHA256(), 32, OTHER_INFO).derive_into(shared, key)
    try:
        AESGCM(key).decrypt_into(encrypted.nonce, encrypted.ciphertext, encrypted.protected, into)
    except InvalidTag:
        raise BadSignature("the secret does not decrypt: it is not for this agent's key") from None
