"""Verifies ES256 as the machine's keys make it: ECDSA on P-256 over SHA-256, r || s (RFC 7518, 3.4)."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

_SIGNATURE_BYTES = 64


def verify_signature(message: bytes, signature: bytes, point: bytes) -> bool:
    """Whether `signature` (r || s) is ES256 over `message` by the key with this public point (65 bytes)."""
    if len(signature) != _SIGNATURE_BYTES:
        return False
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        key.verify(der, message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True
