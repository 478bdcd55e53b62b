"""Computes key confirmation: a value that shows whether two sides hold the same secret and reveals nothing about it.

HKDF-SHA256 (RFC 5869) of the secret, for this agent and version: 16 bytes, which may appear in a signed request and in the
server's registry.
"""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .jose import b64encode

KEY_CHECK_BYTES = 16


def key_check(secret: bytes | memoryview, agent_id: str, version: int) -> str:
    """The confirmation value of a secret version, 22 characters of base64url.

    Args:
        secret: 32 bytes.
        agent_id: whose secret it is.
        version: its number.
    """
    info = f"license-agent/key-check/{agent_id}/{version}".encode()
    made = HKDF(algorithm=hashes.SHA256(), length=KEY_CHECK_BYTES, salt=None, info=info).derive(secret)
    return b64encode(made)
