"""Writes and reads the offline root's private key: a PEM file that the administrator keeps away from the server.

A new key is written beside its place before the registry commits, and gets its name afterwards. So a file of that name is
always the key of a root that exists, and the same command finishes a run that was killed in between.
"""

import contextlib
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from common.files import place, temporary_of, write_temporary
from contracts.keyset import pin_of
from server.base.errors import RegistryError

_LAST_LINE_END = b"PRIVATE KEY-----"


def write_root_key(path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes | None) -> None:
    """Writes the key to a new file of mode 0600, encrypted if there is a passphrase.

    Raises:
        RegistryError: the file exists, or cannot be written.
    """
    file = NewRootKey(path, passphrase)
    file.check()
    file.write(key)
    file.put()


class NewRootKey:
    """The file of a root's private key that is being made.

    Args:
        path: of the file.
        passphrase: encrypts the key; None leaves it unencrypted.
        within: the server's directory. In it, the file's directory is created with mode 0700 if it is missing; elsewhere, a
            missing directory may be that of a medium which is not mounted.
    """

    def __init__(self, path: Path, passphrase: bytes | None, within: Path | None = None) -> None:
        self._path = path
        self._own = within is not None and path.absolute().is_relative_to(within.absolute())
        self._temporary = temporary_of(path)
        self._passphrase = passphrase

    def check(self) -> None:
        """Returns if the file can be written; leaves nothing behind but its directory, where that is the server's.

        Raises:
            RegistryError: the file exists, or cannot be written there.
        """
        if os.path.lexists(self._path):
            raise RegistryError(f"{self._path} already exists and is not overwritten; name another file with --root-key")
        if not self._own and not self._path.parent.exists():
            raise RegistryError(
                f"the root key {self._path} cannot be written: there is no directory {self._path.parent}; mount the medium "
                "that it is on, or create it"
            )
        try:
            if not self._path.parent.is_dir():
                self._path.parent.mkdir(mode=0o700, parents=True)
            write_temporary(self._temporary, b"")
            self._temporary.unlink()
        except OSError as error:
            self.discard()
            raise RegistryError(
                f"the root key {self._path} cannot be written: {error.strerror}; "
                "make its directory writable, or name another file"
            ) from None

    def write(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Writes the key beside its place, durably, with mode 0600.

        Raises:
            RegistryError: it cannot be written.
        """
        protection: KeySerializationEncryption = (
            BestAvailableEncryption(self._passphrase) if self._passphrase else NoEncryption()
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
        try:
            write_temporary(self._temporary, pem)
        except OSError as error:
            raise RegistryError(f"the root key {self._path} cannot be written: {error.strerror}") from None

    def discard(self) -> None:
        """Removes what `write` has written."""
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def put(self) -> None:
        """Gives the file its name, once the registry has committed.

        Raises:
            RegistryError: it cannot; the key stays beside its place.
        """
        try:
            place(self._temporary, self._path)
        except OSError as error:
            raise RegistryError(
                f"the root key is in {self._temporary}, because {self._path} could not be written ({error.strerror}): "
                "fix that, and run the same command again"
            ) from None

    def left_by(self, pin: str) -> bool:
        """Whether an earlier run that was interrupted has left the key of the root with this pin beside its place.

        Raises:
            RegistryError: there is a key, and the passphrase does not open it.
        """
        if not self._temporary.exists() or not self._temporary.read_bytes().rstrip().endswith(_LAST_LINE_END):
            return False  # a part of a key, of a run that never committed
        spki = (
            read_root_key(self._temporary, self._passphrase)
            .public_key()
            .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )
        return pin_of(spki) == pin


def needs_passphrase(path: Path) -> bool:
    """Whether the file holds an encrypted key (RFC 7468 section 11, or the older form); False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return b"ENCRYPTED" in file.read(4096)
    except OSError:
        return False


def read_root_key(path: Path, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    """Reads the key from a file.

    Raises:
        RegistryError: the file cannot be read, has no P-256 key, or the passphrase is wrong.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase)
    except OSError as error:
        raise RegistryError(
            f"the root key {path} cannot be read: {error.strerror}; bring it to this machine while it is needed"
        ) from None
    except TypeError:
        need = "is encrypted; give --root-passphrase-file" if passphrase is None else "is not encrypted; give no passphrase"
        raise RegistryError(f"the root key {path} {need}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise RegistryError(f"{path} has no private key, or the passphrase is wrong") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RegistryError(f"{path} has a private key that is not P-256")
    return key
