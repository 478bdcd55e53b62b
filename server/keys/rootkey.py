"""Writes and reads the offline root's private key: a PEM file that the administrator keeps away from the server."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from server.base import privatefile
from server.base.errors import RegistryError


def write_root_key(path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes | None) -> None:
    """Writes the key to a new file of mode 0600, encrypted if there is a passphrase.

    Raises:
        RegistryError: the file exists.
    """
    protection: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
    privatefile.create(path, pem)


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
