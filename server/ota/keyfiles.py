"""Makes and reads the keys that sign update metadata away from the server: P-256, in PEM files of their holders."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from common.files import create, os_problem
from server.base import privatefile
from server.base.errors import Conflict, RegistryError

_FORMS = "a P-256 or Ed25519 key in PEM"


def public_path(path: Path) -> Path:
    """Where the public half of the key in a file is written."""
    return path.with_name(f"{path.name}.pub")


def make(path: Path, passphrase: bytes | None) -> SSlibKey:
    """Makes a key, writes it to a file of mode 0600 and its public half beside it, and returns the public half.

    Args:
        path: of the private key; must not exist. Neither may its public half's.
        passphrase: encrypts the private key; None leaves it unencrypted.

    Raises:
        RegistryError: a file exists, or cannot be written.
    """
    public = public_path(path)
    for each in (path, public):
        if each.exists():
            raise Conflict(f"{each} already exists and is not overwritten; name another file")
    if not path.parent.is_dir():
        raise RegistryError(f"there is no directory {path.parent} for the key; mount the medium that it is on, or create it")
    key = ec.generate_private_key(ec.SECP256R1())
    protection: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    try:
        create(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
        create(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    except OSError as problem:
        raise RegistryError(f"the key cannot be written: {os_problem(problem)}") from None
    return SSlibKey.from_crypto(key.public_key())


def read_public(path: Path) -> SSlibKey:
    """Reads a public key.

    Raises:
        RegistryError: the file cannot be read, or has no such key.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as problem:
        raise RegistryError(f"the public key cannot be read: {os_problem(problem)}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise RegistryError(
            f"{path} has no public key; give {_FORMS} such as the file FILE.pub that 'license-server ota new-key FILE' writes"
        ) from None
    _require_kind(key, path)
    return SSlibKey.from_crypto(key)


def read_signer(path: Path, passphrase: bytes | None) -> CryptoSigner:
    """Reads a private key, to sign with.

    Raises:
        RegistryError: the file cannot be read, others may read it, it has no such key, or the passphrase is wrong.
    """
    data = privatefile.read(path, "the key")
    try:
        key = load_pem_private_key(data, passphrase)
    except TypeError:
        need = "is encrypted; give --passphrase-file" if passphrase is None else "is not encrypted; give no passphrase"
        raise RegistryError(f"the key {path} {need}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise RegistryError(f"{path} has no private key, or the passphrase is wrong") from None
    _require_kind(key.public_key(), path)
    return CryptoSigner(key)


def _require_kind(key: object, path: Path) -> None:
    p256 = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    if not p256 and not isinstance(key, ed25519.Ed25519PublicKey):
        raise RegistryError(f"{path} has a key of another kind; give {_FORMS}")
