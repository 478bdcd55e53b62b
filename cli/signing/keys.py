"""Reads the keys that an administrator names on the command line."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from audittrail.archive import Header, unseal_for_operator
from audittrail.whole import Unseal


class BadKey(Exception):
    """A file holds no key that can be used here."""


def operator_unseal(path: Path) -> Unseal:
    """Opens archives with the operator's private key (PEM, P-256, not encrypted).

    Raises:
        BadKey: the file holds no such key.
        OSError: it cannot be read.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadKey(f"{path} holds no unencrypted private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadKey(f"{path} does not hold a P-256 key")

    def unseal(data: bytes) -> tuple[Header, bytes]:
        return unseal_for_operator(data, key)

    return unseal


def public_point(path: Path) -> bytes:
    """The public point (65 bytes, uncompressed) of a P-256 public key in PEM form. Raises as `operator_unseal`."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        raise BadKey(f"{path} holds no public key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadKey(f"{path} does not hold a P-256 key")
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
