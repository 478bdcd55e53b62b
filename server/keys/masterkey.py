"""The master key: it wraps the data key, and never stands in the registry.

It comes from a systemd credential, from a file, or never leaves a token (`pkcs11key`); whoever holds it and the database can
open everything. How a data key is kept and how the master key is rotated: `datakey`, `masterkeyrotation`.
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
    """Another master key has wrapped this."""


class MasterKey(Protocol):
    """Wraps data keys."""

    @property
    def kind(self) -> str:
        """What it is, for people."""
        ...

    @property
    def way(self) -> str:
        """How it wraps, as it stands beside what it has wrapped."""
        ...

    def wrap(self, data_key: bytes) -> bytes:
        """The data key as it stands in the registry."""
        ...

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key; NotWrapped if another master key wrapped it."""
        ...


class SoftMasterKey:
    """A master key in memory.

    Args:
        key: `KEY_BYTES` bytes.
        kind: where it came from.

    Raises:
        RegistryError: it has another size.
    """

    way = SOFT

    def __init__(self, key: bytes, kind: str) -> None:
        if len(key) != KEY_BYTES:
            raise RegistryError(f"the master key ({kind}) must have {KEY_BYTES} bytes, it has {len(key)}")
        self._key = key
        self._kind = kind

    def __repr__(self) -> str:
        return f"<master key, {self._kind}>"

    def __reduce__(self) -> str:
        raise TypeError("a master key is not pickled")

    @property
    def kind(self) -> str:
        """Where it came from."""
        return self._kind

    def wrap(self, data_key: bytes) -> bytes:
        """Nonce and data key under AES-256-GCM."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self._key).encrypt(nonce, data_key, ASSOCIATED)

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key.

        Raises:
            NotWrapped: this master key did not wrap it.
        """
        try:
            return AESGCM(self._key).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], ASSOCIATED)
        except (InvalidTag, ValueError):
            raise NotWrapped from None


class TokenMasterKey:
    """A master key that stays in a PKCS #11 token.

    Args:
        uri: names it; see `pkcs11key`.
    """

    way = "pkcs11-aes-256-gcm"

    def __init__(self, uri: pkcs11key.Uri) -> None:
        self._uri = uri

    @property
    def kind(self) -> str:
        """Which token."""
        return f"token {self._uri.token!r}, key {self._uri.object!r}"

    def wrap(self, data_key: bytes) -> bytes:
        """Nonce and data key under AES-256-GCM, encrypted in the token."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + pkcs11key.encrypt(self._uri, nonce, data_key, ASSOCIATED)

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key.

        Raises:
            NotWrapped: the token's key did not wrap it.
            RegistryError: the token cannot be used.
        """
        opened = pkcs11key.decrypt(self._uri, wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], ASSOCIATED)
        if opened is None:
            raise NotWrapped
        return opened


def of(where: str) -> MasterKey:
    """The master key that is kept there.

    Args:
        where: the path of a file, or a PKCS #11 URI.

    Raises:
        RegistryError: it is not there, or others may read it.
    """
    if pkcs11key.is_uri(where):
        return TokenMasterKey(pkcs11key.parse(where))
    return SoftMasterKey(privatefile.read(Path(where), "the master key"), f"file {where}")


def in_use(where: str) -> MasterKey:
    """The master key that systemd has passed, or else the one that is kept there."""
    return from_credential() or of(where)


def make(where: str) -> None:
    """Makes a fresh master key: a file of mode 0600, or a key in a token that cannot be taken out.

    Raises:
        RegistryError: there is one already, or it cannot be made.
    """
    if pkcs11key.is_uri(where):
        pkcs11key.make(pkcs11key.parse(where))
    else:
        privatefile.create(Path(where), fresh())


def exists(where: str) -> bool:
    """Whether there is a master key already."""
    return pkcs11key.exists(pkcs11key.parse(where)) if pkcs11key.is_uri(where) else Path(where).exists()


def fresh() -> bytes:
    """The bytes of a new master key."""
    return os.urandom(KEY_BYTES)


def place_of(text: str) -> str:
    """Where a master key is to be, as an administrator has written it: a path becomes absolute.

    Raises:
        RegistryError: it is a PKCS #11 URI that cannot be used.
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
