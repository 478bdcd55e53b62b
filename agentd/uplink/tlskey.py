"""Makes the agent's TLS client key and checks certificates for it.

The key is short-lived and goes to the link for a connection.

Stolen alone it opens nothing: the server accepts no request that the identity key has not signed as well.
"""

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from hwsec.secretmem import SecretBuffer, overwrite_freed_blocks, wipe_bytes
from hwsec.vault import SECRET_BYTES, Vault, WrappedSecret

# SEC 1, C.4: version 1, the private key, the curve; without the public key, which the reader computes.
_HEAD = bytes.fromhex("30310201010420")
_TAIL = bytes.fromhex("a00a06082a8648ce3d030107")
_BEGIN, _END = b"-----BEGIN EC PRIVATE KEY-----\n", b"-----END EC PRIVATE KEY-----\n"


class BadCertificate(Exception):
    """A certificate does not match the key, or cannot be read."""


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A TLS key, ready for use. Times are seconds since 1970 UTC.

    Attributes:
        certificates: as in `SealedTlsKey`.
        scalar: the private key, 32 bytes, as it rests in memory.
        serial: of the certificate.
        not_before: begin of the certificate.
        not_after: its end.
    """

    certificates: tuple[str, ...]
    scalar: WrappedSecret
    serial: int
    not_before: int
    not_after: int


def new_key(agent_id: str, vault: Vault) -> tuple[WrappedSecret, str]:
    """A fresh key as it rests in memory, and a request for its certificate (PKCS #10, PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, agent_id or "unprovisioned")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    try:
        # RFC 5915: SEQUENCE, INTEGER 1, then the OCTET STRING of 32 bytes, always at the same place for P-256.
        with SecretBuffer(SECRET_BYTES) as scalar, memoryview(der) as view:
            scalar.view[:] = view[7 : 7 + SECRET_BYTES]
            return vault.wrap(scalar), csr.public_bytes(Encoding.PEM).decode("ascii")
    finally:
        wipe_bytes(der)
        overwrite_freed_blocks(len(der))  # where the library has put the text together


def client_key(certificates: tuple[str, ...], scalar: WrappedSecret) -> ClientKey:
    """The key with what its certificate says.

    Raises:
        BadCertificate: the first certificate cannot be read.
    """
    try:
        own = x509.load_pem_x509_certificate(certificates[0].encode("ascii"))
        # The library reads each part when it is asked for, and refuses it then.
        begin, end = int(own.not_valid_before_utc.timestamp()), int(own.not_valid_after_utc.timestamp())
        return ClientKey(certificates, scalar, own.serial_number, begin, end)
    except (ValueError, IndexError, OverflowError):
        raise BadCertificate("the server sent a certificate that cannot be read") from None


def check_certificate(certificate: str, csr: str) -> None:
    """Compares a certificate with the request that it should answer.

    Raises:
        BadCertificate: it is for another key, or cannot be read.
    """
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        own = x509.load_pem_x509_certificate(certificate.encode("ascii")).public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm):
        raise BadCertificate("the server sent a certificate that cannot be read") from None
    if own != x509.load_pem_x509_csr(csr.encode("ascii")).public_key().public_bytes(*form):
        raise BadCertificate("the server sent a certificate for another key")


@contextlib.contextmanager
def key_pem(vault: Vault, scalar: WrappedSecret) -> Iterator[bytearray]:
    """The private key in PEM for the length of the block; wiped at its end."""
    size = len(_HEAD) + SECRET_BYTES + len(_TAIL)
    with SecretBuffer(size) as der, vault.open(scalar) as opened:
        der.view[: len(_HEAD)] = _HEAD
        der.view[len(_HEAD) : len(_HEAD) + SECRET_BYTES] = opened.view
        der.view[len(_HEAD) + SECRET_BYTES :] = _TAIL
        text = base64.b64encode(der.view)
    # Filled in place: an array that grows would leave copies behind. Lines of 64 characters, as RFC 7468 wants them.
    lines = range(0, len(text), 64)
    pem = bytearray(len(_BEGIN) + len(text) + len(lines) + len(_END))
    try:
        with memoryview(pem) as room, memoryview(text) as source:
            room[: len(_BEGIN)] = _BEGIN
            place = len(_BEGIN)
            for start in lines:
                line = source[start : start + 64]
                room[place : place + len(line)] = line
                place += len(line)
                room[place] = ord("\n")
                place += 1
                line.release()
            room[place:] = _END
        yield pem
    finally:
        wipe_bytes(text)
        pem[:] = bytes(len(pem))
