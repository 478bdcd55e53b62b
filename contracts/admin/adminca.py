"""Reads the admin CA's file, and tells what its certificates may be. Pure: PEM in, certificates out."""

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

FILE_NAME = "admin-ca.pem"
"""The admin CA's file, beside the agent's configuration."""
MAX_CA_BYTES = 64 * 1024
"""Of the file."""
MAX_CAS = 8
"""Certificates in it: a CA and its successor, for as many CAs as anybody needs."""

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for a certificate that is not one, when its parts are read."""


class BadAdminCa(Exception):
    """The admin CA's file holds something else than CA certificates that can be used; the message says what."""


@dataclass(frozen=True, slots=True)
class AdminCa:
    """The CAs whose certificates count.

    Attributes:
        certificates: of the CAs.
    """

    certificates: tuple[x509.Certificate, ...]

    @property
    def ends(self) -> int:
        """When the last of them ends, seconds since 1970 UTC."""
        return max(int(each.not_valid_after_utc.timestamp()) for each in self.certificates)


def digest_of(certificate: x509.Certificate) -> str:
    """What a certificate is called in lists and logs: SHA-256 of its DER, hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def read_admin_ca(pem: bytes) -> AdminCa:
    """The CAs in a file.

    Raises:
        BadAdminCa: it holds no certificate, or one that is not of a CA with a P-256 key.
    """
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:
            require_p256(certificate)
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
            if not constraints.ca or not usage.key_cert_sign:
                raise BadAdminCa(f"{certificate.subject.rfc4514_string()} is not the certificate of a CA")
    except x509.ExtensionNotFound:
        raise BadAdminCa("a certificate says neither by basicConstraints nor by keyUsage that it is one of a CA") from None
    except UNREADABLE as error:
        raise BadAdminCa(f"it holds no certificates that can be read ({str(error)[:100]})") from None
    if len(found) > MAX_CAS:
        raise BadAdminCa(f"it holds {len(found)} certificates; the limit is {MAX_CAS}")
    return AdminCa(tuple(found))


def require_p256(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The key of a certificate.

    Raises:
        ValueError: it is of another kind than P-256.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("a key of another kind than P-256")
    return key
