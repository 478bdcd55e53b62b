"""Finds or makes the master key, which wraps the data key.

It is a systemd credential, a file, or a key that never leaves a PKCS #11 token (`pkcs11key`). It is never in the registry: with
the registry and the master key, everything can be decrypted. `datakey` stores what it wraps, `masterkey_rotation` rotates it.
"""

import os
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.base import privatefile
from server.base.errors import RegistryError

from . import pkcs11key

KEY_BYTES = 32
CREDENTIAL = "license-server-master-key"
NONCE_BYTES = 12
ASSOCIATED = b"license-server data key v1"
SOFT = "aes-256-gcm"


class NotWrapped(Exception):
    """The data was wrapped by another master key."""


class MasterKey(Protocol):
    """Wraps data keys."""

    @property
    def kind(self) -> str:
        """Where the key is, for people."""
        ...

    @property
    def way(self) -> str:
        """How it wraps; stored beside each wrap."""
        ...

    def wrap(self, data_key: bytes) -> bytes:
        """Encrypts the data key."""
        ...

    def unwrap(self, wrapped: bytes) -> bytes:
        """Decrypts the data key. Raises NotWrapped if another master key wrapped it."""
        ...


class SoftMasterKey:
    """A master key in memory.

    Args:
        key: `KEY_BYTES` bytes.
        kind: where it came from.

    Raises:
        RegistryError: the key has another size.
    """

    way = SOFT

    def __init__(self, key: bytes, kind: str) -> None:
        if len(key) != KEY_BYTES:
            raise RegistryError(f"the master key ({kind}) has {len(key)} bytes; it must have {KEY_BYTES}")
        self._key = key
        self._kind = kind

    def __repr__(self) -> str:
        return f"<master key, {self._kind}>"

    def __reduce__(self) -> str:
        raise TypeError("a master key cannot be pickled")

    @property
    def kind(self) -> str:
        """Where it came from."""
        return self._kind

    def wrap(self, data_key: bytes) -> bytes:
        """Encrypts the data key with AES-256-GCM; the nonce comes first."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self._key).encrypt(nonce, data_key, ASSOCIATED)

    def unwrap(self, wrapped: bytes) -> bytes:
        """Decrypts the data key.

        Raises:
            NotWrapped: another master key wrapped it.
        """
        try:
            return AESGCM(self._key).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], ASSOCIATED)
        except (InvalidTag, ValueError):
            raise NotWrapped from None


class TokenMasterKey:
    """A master key that stays in a PKCS #11 token.

    Args:
        uri: where it is; see `pkcs11key`.
    """

    way = "pkcs11-aes-256-gcm"

    def __init__(self, uri: pkcs11key.Uri) -> None:
        self._uri = uri

    @property
    def kind(self) -> str:
        """The labels of the token and the key."""
        return f"token {self._uri.token!r}, key {self._uri.object!r}"

    def wrap(self, data_key: bytes) -> bytes:
        """Has the token encrypt the data key with AES-256-GCM; the nonce comes first."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + pkcs11key.encrypt(self._uri, nonce, data_key, ASSOCIATED)

    def unwrap(self, wrapped: bytes) -> bytes:
        """Has the token decrypt the data key.

        Raises:
            NotWrapped: another key wrapped it.
            RegistryError: the token cannot be used.
        """
        opened = pkcs11key.decrypt(self._uri, wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], ASSOCIATED)
        if opened is None:
            raise NotWrapped
        return opened


def of(where: str) -> MasterKey:
    """Opens a master key.

    Args:
        where: the path of a file, or a PKCS #11 URI.

    Raises:
        RegistryError: there is none, or others may read its file.
    """
    if pkcs11key.is_uri(where):
        return TokenMasterKey(pkcs11key.parse(where))
    return SoftMasterKey(privatefile.read(Path(where), "the master key"), f"file {where}")


def in_use(where: str) -> MasterKey:
    """The master key that systemd has passed; if it has passed none, the one at `where`."""
    return from_credential() or of(where)


def make(where: str) -> None:
    """Makes a new master key: a file of mode 0600, or a key in a token that cannot be extracted.

    Raises:
        RegistryError: there is one already, or it cannot be made.
    """
    if pkcs11key.is_uri(where):
        pkcs11key.make(pkcs11key.parse(where))
    else:
        privatefile.create(Path(where), fresh())


def remove(where: str) -> None:
    """Removes a master key that has been made and protects nothing yet."""
    if pkcs11key.is_uri(where):
        pkcs11key.remove(pkcs11key.parse(where))
    else:
        Path(where).unlink(missing_ok=True)


def exists(where: str) -> bool:
    """Whether there is a file or a key at `where`."""
    return pkcs11key.exists(pkcs11key.parse(where)) if pkcs11key.is_uri(where) else Path(where).exists()


def fresh() -> bytes:
    """Random bytes for a new master key."""
    return os.urandom(KEY_BYTES)


def place_of(text: str) -> str:
    """Normalizes what an administrator has written as a master key's place: a path becomes absolute.

    Raises:
        RegistryError: the text is an invalid PKCS #11 URI.
    """
    if pkcs11key.is_uri(text):
        pkcs11key.parse(text)
        return text
    return str(Path(text).absolute())


def from_credential() -> MasterKey | None:
    """The master key that systemd has passed (LoadCredential=); None if it has passed none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = None if directory is None else Path(directory) / CREDENTIAL
    if path is None or not path.exists():
        return None
    return SoftMasterKey(path.read_bytes(), "systemd credential")
