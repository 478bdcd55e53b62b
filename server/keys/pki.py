"""Makes certificates (RFC 5280). Pure: keys, names and times in, certificates out.

root (offline, pathlen 1)  ->  issuing CA (pathlen 0)  ->  the server's TLS certificate, the client certificates of agents and
                                                           of devices that speak hawkBit's DDI
operator CA (pathlen 0)                                ->  the operators' client certificates
"""

import datetime
import ipaddress
import secrets

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contracts.exchange import RefusalCode
from server.base.refused import RequestRefused
from server.web.peers import AGENT_URI, DEVICE_URI, OPERATOR_URI

Key = ec.EllipticCurvePrivateKey
BACKDATE_S = 3600
"""How much earlier than now a certificate begins, because clocks differ, and this server's may be wrong for a while."""


def _time(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _name(common: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, common[:64]),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: int, until: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(secrets.randbits(127) | 1 << 126)
        .not_valid_before(_time(now - BACKDATE_S))
        .not_valid_after(_time(until))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs: bool = False, certifies: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certifies,
        crl_sign=certifies,
        encipher_only=False,
        decipher_only=False,
    )


def make_root(key: Key, issuer: str, now: int, until: int) -> x509.Certificate:
    """The self-signed certificate of an offline root."""
    name = _name("Root CA", issuer)
    return (
        _builder(name, name, key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_usage(certifies=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def make_issuing_ca(
    key: ec.EllipticCurvePublicKey, root: x509.Certificate, root_key: Key, issuer: str, now: int, until: int
) -> x509.Certificate:
    """The certificate of an issuing CA, by the root."""
    return (
        _builder(_name(f"Issuing CA {now}", issuer), root.subject, key, now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certifies=True), critical=True)
        .add_extension(_authority(root), critical=False)
        .sign(root_key, hashes.SHA256())
    )


def make_operator_ca(key: Key, issuer: str, now: int, until: int) -> x509.Certificate:
    """The self-signed certificate of the operator CA. No root is above it: agents have nothing to do with it."""
    name = _name(f"Operator CA {now}", issuer)
    return (
        _builder(name, name, key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certifies=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def make_server_certificate(
    key: ec.EllipticCurvePublicKey, ca: x509.Certificate, ca_key: Key, names: tuple[str, ...], now: int, until: int
) -> x509.Certificate:
    """The TLS certificate of the server for its DNS names and IP addresses."""
    return (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]), ca.subject, key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
        .add_extension(_authority(ca), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def make_client_certificate(
    key: ec.EllipticCurvePublicKey, ca: x509.Certificate, ca_key: Key, agent_id: str, serial: int | None, now: int, until: int
) -> x509.Certificate:
    """The TLS client certificate of an agent. It has the serial number, in case the registry loses it (`lost_records`)."""
    names = [x509.NameAttribute(NameOID.COMMON_NAME, agent_id)]
    if serial is not None:
        names.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial)))
    return _client_certificate(key, ca, ca_key, names, AGENT_URI + agent_id, now, until)


def make_device_certificate(
    key: ec.EllipticCurvePublicKey, ca: x509.Certificate, ca_key: Key, device_id: str, now: int, until: int
) -> x509.Certificate:
    """The TLS client certificate of a device that speaks hawkBit's DDI. It names no agent, so it is none."""
    names = [x509.NameAttribute(NameOID.COMMON_NAME, device_id)]
    return _client_certificate(key, ca, ca_key, names, DEVICE_URI + device_id, now, until)


def make_operator_certificate(
    key: ec.EllipticCurvePublicKey, ca: x509.Certificate, ca_key: Key, account: str, now: int, until: int
) -> x509.Certificate:
    """The TLS client certificate of an operator's account. What the account may do is not in it: the registry says that."""
    names = [x509.NameAttribute(NameOID.COMMON_NAME, account)]
    return _client_certificate(key, ca, ca_key, names, OPERATOR_URI + account, now, until)


def _client_certificate(
    key: ec.EllipticCurvePublicKey,
    ca: x509.Certificate,
    ca_key: Key,
    names: list[x509.NameAttribute[str]],
    uri: str,
    now: int,
    until: int,
) -> x509.Certificate:
    return (
        _builder(x509.Name(names), ca.subject, key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(_authority(ca), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _authority(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def general_name(text: str) -> x509.GeneralName:
    """A DNS name or an IP address, in the form of a certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def key_of_csr(pem: str) -> ec.EllipticCurvePublicKey:
    """The key in a certificate request.

    Raises:
        RequestRefused: it is not a PKCS #10 request for a P-256 key, signed by that key.
    """
    try:
        csr = x509.load_pem_x509_csr(pem.encode("ascii"))
        key = csr.public_key()
        sound = csr.is_signature_valid
    except (ValueError, TypeError, UnicodeError):
        text = "the certificate request is not a PKCS #10 request in PEM"
        raise RequestRefused(RefusalCode.BAD_REQUEST, text) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1) or not sound:
        raise RequestRefused(RefusalCode.BAD_REQUEST, "the certificate request must be for a P-256 key and signed by it")
    return key


def pem_of(certificate: x509.Certificate) -> str:
    """The certificate in PEM."""
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER, hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def spki_of(certificate: x509.Certificate) -> bytes:
    """The certificate's SubjectPublicKeyInfo in DER."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
