"""Seals columns of the registry: AES-256-GCM under the data key, bound to table, row and column. Pure.

    version (1 byte) | nonce (12 bytes) | ciphertext with its tag (16 bytes)

The data key is in the registry too, wrapped by the master key, which is not.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from server.base.errors import RegistryError

KEY_BYTES = 32
_VERSION = b"\x01"
_NONCE_BYTES = 12


class Cipher:
    """Seals and opens columns.

    Args:
        data_key: `KEY_BYTES` bytes.
    """

    def __init__(self, data_key: bytes) -> None:
        self._key = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"license-server columns v1").derive(data_key)
        self._audit = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"license-server audit v1").derive(data_key)
        self._backup = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"license-server backups v1").derive(data_key)
        self._derived = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"license-server challenges v1").derive(data_key)
        self._requests = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"license-server kept requests v1").derive(data_key)
        self._cursors = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"license-server cursors v1").derive(data_key)

    def __repr__(self) -> str:
        return "<cipher of the registry>"

    def challenge_key(self) -> bytes:
        """The HMAC key of challenges, 32 bytes. It is derived, so that all replicas have the same one."""
        return self._derived

    def cursor_key(self) -> bytes:
        """The HMAC key of the operator API's cursors, 32 bytes; all processes have the same one."""
        return self._cursors

    def request_key(self) -> bytes:
        """The HMAC key of operators' requests whose replies are kept, 32 bytes."""
        return self._requests

    def audit_key(self) -> bytes:
        """The HMAC key of what the audit log says of its removed records, 32 bytes."""
        return self._audit

    def backup_key(self) -> bytes:
        """The HMAC key of backups, 32 bytes."""
        return self._backup

    def seal(self, table: str, row: str, column: str, data: bytes) -> bytes:
        """Encrypts `data` for one place."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + AESGCM(self._key).encrypt(nonce, data, _place(table, row, column))

    def open(self, table: str, row: str, column: str, sealed: bytes) -> bytes:
        """Decrypts what was sealed for this place.

        Raises:
            RegistryError: it was changed, moved to another place, or sealed under another key.
        """
        try:
            if sealed[:1] != _VERSION:
                raise InvalidTag
            nonce, ciphertext = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
            return AESGCM(self._key).decrypt(nonce, ciphertext, _place(table, row, column))
        except (InvalidTag, ValueError):
            raise RegistryError(
                f"{column} of {table} {row} cannot be decrypted: it was changed, or belongs to another master key"
            ) from None


def _place(table: str, row: str, column: str) -> bytes:
    return b"\0".join(part.encode() for part in (table, row, column))
