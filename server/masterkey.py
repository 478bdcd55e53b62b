"""The master key: it wraps the data key, and never stands in the registry.

It comes from a systemd credential or from a file; whoever holds it and the database can open everything.
"""

import base64
import json
import os
import stat
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .errors import RegistryError

KEY_BYTES = 32
CREDENTIAL = "license-server-master-key"
_NONCE_BYTES = 12
_ASSOCIATED = b"license-server data key v1"


class MasterKey(Protocol):
    """Wraps data keys."""

    @property
    def kind(self) -> str:
        """What it is, for people."""
        ...

    def wrap(self, data_key: bytes) -> str:
        """The data key as it stands in the registry."""
        ...

    def unwrap(self, wrapped: str) -> bytes:
        """The data key; RegistryError if another master key wrapped it."""
        ...


class SoftMasterKey:
    """A master key in memory.

    Args:
        key: `KEY_BYTES` bytes.
        kind: where it came from.
    """

    def __init__(self, key: bytes, kind: str) -> None:
        if len(key) != KEY_BYTES:
            raise RegistryError(f"the master key ({kind}) must have {KEY_BYTES} bytes, it has {len(key)}")
        self._key = key
        self._kind = kind

    def __repr__(self) -> str:
        return f"<master key, {self._kind}>"

    @property
    def kind(self) -> str:
        """Where it came from."""
        return self._kind

    def wrap(self, data_key: bytes) -> str:
        """The data key under AES-256-GCM, as JSON."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + AESGCM(self._key).encrypt(nonce, data_key, _ASSOCIATED)
        return json.dumps({"wrap": "aes-256-gcm", "sealed": base64.b64encode(sealed).decode("ascii")})

    def unwrap(self, wrapped: str) -> bytes:
        """The data key.

        Raises:
            RegistryError: this master key did not wrap it.
        """
        try:
            content = json.loads(wrapped)
            sealed = base64.b64decode(content["sealed"], validate=True)
            if content["wrap"] != "aes-256-gcm":
                raise RegistryError(
                    f"the registry's data key is wrapped by {content['wrap']}, not by a key of the kind {self._kind}"
                )
            return AESGCM(self._key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _ASSOCIATED)
        except (InvalidTag, ValueError, KeyError, TypeError):
            raise RegistryError(f"the master key ({self._kind}) is not the one of this registry") from None


def make_file(path: Path) -> None:
    """Writes a fresh master key to a new file of mode 0600.

    Raises:
        RegistryError: there is one already.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise RegistryError(f"{path} exists already; it is not overwritten") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.urandom(KEY_BYTES))
        os.fsync(file.fileno())


def from_file(path: Path) -> MasterKey:
    """The master key in a file.

    Raises:
        RegistryError: it is not there, or others may read it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = path.read_bytes()
    except OSError as error:
        raise RegistryError(f"the master key {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise RegistryError(f"the master key {path} has mode {mode:04o}, so that others may use it; run: chmod 0600 {path}")
    return SoftMasterKey(data, f"file {path}")


def from_credential() -> MasterKey | None:
    """The master key that systemd has passed (LoadCredential=); None if it has passed none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = None if directory is None else Path(directory) / CREDENTIAL
    if path is None or not path.exists():
        return None
    return SoftMasterKey(path.read_bytes(), "systemd credential")
