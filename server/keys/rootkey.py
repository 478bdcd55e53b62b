"""The offline root's private key: a PEM file that the administrator keeps away from the server. It is never in the registry."""

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
    """The key in a file.

    Raises:
        RegistryError: it is not there, or the passphrase is not the right one.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase)
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror}; bring the root key here for as long as it is needed") from None
    except TypeError:
        need = "needs its passphrase (--root-passphrase-file)" if passphrase is None else "has no passphrase"
        raise RegistryError(f"{path} {need}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise RegistryError(f"{path} holds no private key, or the passphrase is wrong") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RegistryError(f"{path} does not hold a P-256 key")
    return key
