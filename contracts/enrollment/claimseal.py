"""Encrypts an enrollment token to the server's enrollment key: compact JWE, ECDH-ES, A256GCM (RFC 7516, RFC 7518 4.6). Pure."""

import json

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contracts.delivery import OTHER_INFO
from contracts.jose import b64encode, jwk_from_point, public_key_from_jwk
from contracts.keyset import PublicJwk

from .enrollment import Claim

_TAG_BYTES = 16


def encrypt_claim(claim: Claim, key: PublicJwk, ephemeral: ec.EllipticCurvePrivateKey, nonce: bytes) -> str:
    """Encrypts a token so that only the server can read it.

    Args:
        claim: the token, with the device that it is for.
        key: an enrollment key of the key set.
        ephemeral: a fresh P-256 key.
        nonce: 12 fresh random bytes.

    Raises:
        MalformedToken: the enrollment key is not a point of the curve.
    """
    public = public_key_from_jwk(msgspec.to_builtins(key))
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    header = {"alg": "ECDH-ES", "enc": "A256GCM", "kid": key.kid, "epk": jwk_from_point(point)}
    protected = b64encode(json.dumps(header, separators=(",", ":")).encode()).encode("ascii")
    content_key = ConcatKDFHash(hashes.SHA256(), 32, OTHER_INFO).derive(ephemeral.exchange(ec.ECDH(), public))
    sealed = AESGCM(content_key).encrypt(nonce, msgspec.json.encode(claim), protected)
    parts = (protected.decode("ascii"), "", b64encode(nonce), b64encode(sealed[:-_TAG_BYTES]), b64encode(sealed[-_TAG_BYTES:]))
    return ".".join(parts)
