"""Signs and verifies ES256 (RFC 7518, 3.4) with keys that are loaded once: for what each request needs. Pure.

What agents open is made with joserfc (`jose`), and tests compare the two.
"""

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from contracts.jose import ES256_SIGNATURE_BYTES, MalformedToken, b64decode, b64encode

KEPT_KEYS = 4096
"""Public keys that are kept loaded."""
_HALF = ES256_SIGNATURE_BYTES // 2
_ECDSA = ec.ECDSA(hashes.SHA256())


@lru_cache(maxsize=KEPT_KEYS)
def public_key(x: str, y: str) -> ec.EllipticCurvePublicKey:
    """The P-256 key with these coordinates, in base64url as a JWK has them.

    Raises:
        ValueError: they are not a point of the curve.
    """
    try:
        numbers = [int.from_bytes(b64decode(each), "big") for each in (x, y)]
    except MalformedToken as problem:
        raise ValueError(str(problem)) from None
    return ec.EllipticCurvePublicNumbers(numbers[0], numbers[1], ec.SECP256R1()).public_key()


def sign(key: ec.EllipticCurvePrivateKey, header: str, payload: bytes) -> str:
    """Makes a JWS in compact serialization.

    Args:
        key: a P-256 key.
        header: the protected header, in base64url.
        payload: what is signed.
    """
    signed = f"{header}.{b64encode(payload)}"
    r, s = decode_dss_signature(key.sign(signed.encode(), _ECDSA))
    return f"{signed}.{b64encode(r.to_bytes(_HALF, 'big') + s.to_bytes(_HALF, 'big'))}"


def verifies(key: ec.EllipticCurvePublicKey, signed: bytes, signature: bytes) -> bool:
    """Whether the holder of a key has made a signature.

    Args:
        key: a P-256 key.
        signed: header and payload of a JWS, with the dot between them.
        signature: r and s, 32 bytes each.
    """
    if len(signature) != ES256_SIGNATURE_BYTES:
        return False
    r, s = int.from_bytes(signature[:_HALF], "big"), int.from_bytes(signature[_HALF:], "big")
    try:
        key.verify(encode_dss_signature(r, s), signed, _ECDSA)
    except InvalidSignature:
        return False
    return True
