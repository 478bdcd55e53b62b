"""The auth values of an enrolled TPM, computed from the KEK and the file of sealed objects by this module's own code."""

from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

INDICES = ("nv1", "nv2", "nv3")
KEYS = ("attestation", "identity", "agreement", "policy counter")


def derived(key: bytes, purpose: str) -> bytes:
    """Auth value of one object."""
    return HKDF(hashes.SHA256(), 32, salt=None, info=f"license-agent tpm auth {purpose}".encode()).derive(key)


def auth_values(objects: Path, kek: bytes) -> dict[str, bytes]:
    """All of them by name, with what those of the keys derive from."""
    content = msgspec.msgpack.decode(objects.read_bytes()[40:])
    values = {"KEK's auth value": content["kek"]["auth"], "keys_auth": content["keys_auth"]}
    values |= {f"auth value {purpose}": derived(kek, purpose) for purpose in INDICES}
    return values | {f"auth value {purpose}": derived(content["keys_auth"], purpose) for purpose in KEYS}
