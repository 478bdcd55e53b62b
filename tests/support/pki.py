"""A certificate authority for tests. Everything is made anew for each run; nothing here is a secret."""

import base64
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = 1_893_456_000
"""The trusted time of the tests: 2030-01-01, seconds since 1970 UTC. Certificates are valid around it, and not around today."""
DAY = 86_400
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True)
class Entity:
    """A key with its certificate, and the certificates above it up to the root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @property
    def pin(self) -> str:
        spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return "sha256:" + base64.b64encode(hashlib.sha256(spki).digest()).decode()

    @property
    def der_chain(self) -> list[bytes]:
        return [certificate.public_bytes(Encoding.DER) for certificate in (self.certificate, *self.above)]

    @property
    def chain_pem(self) -> str:
        return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in (self.certificate, *self.above))

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def key_der(self) -> bytes:
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def make(
    name: str,
    issuer: Entity | None = None,
    *,
    authority: bool = False,
    hosts: Sequence[str] = (),
    usage: x509.ObjectIdentifier | None = None,
    begins: int = NOW - 30 * DAY,
    ends: int = NOW + 30 * DAY,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Entity:
    """A certificate, self-signed without an issuer.

    Args:
        hosts: DNS names and IP addresses that it is for.
        begins: start of its validity, seconds since 1970 UTC; `ends` likewise.
        key: for a second certificate of the same key.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(begins))
        .not_valid_after(_moment(ends))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if authority:
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    if hosts:
        names = [_general_name(host) for host in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    above = (issuer.certificate, *issuer.above) if issuer else ()
    return Entity(builder.sign(signer, hashes.SHA256()), key, above)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
