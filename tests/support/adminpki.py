"""An admin CA for tests, and certificates of every kind that an administrator may or may not have."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contracts.admin.adminauth import ROLE_URI, act_digest, signed_text
from ipc.adminclient import GivenChallenge, Proof

T0 = 1_800_000_000
DAY = 86_400
Key = Any


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Holder:
    """A certificate and its key."""

    def __init__(self, certificate: x509.Certificate, key: Key) -> None:
        self.certificate, self.key = certificate, key

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def digest(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def sign(self, challenge: dict[str, Any], op: str, **params: Any) -> bytes:
        """Signs an act for the agent that has given a challenge."""
        text = signed_text(challenge["agent_id"], challenge["boot_id"], challenge["challenge"], act_digest(op, params))
        signature: bytes = self.key.sign(text, ec.ECDSA(hashes.SHA256()))
        return signature

    def proof(self, given: GivenChallenge, op: str, fields: dict[str, Any]) -> Proof:
        """As `ipc.adminclient` wants it."""
        found = {"agent_id": given.agent_id, "boot_id": given.boot_id, "challenge": given.challenge}
        return Proof((self.der,), self.sign(found, op, **fields))


class Ca(Holder):
    """A CA that issues what it is asked for."""

    def __init__(
        self, name: str = "Admin CA", *, by: "Ca | None" = None, key: Key = None, start: int = T0, days: int = 3650
    ) -> None:
        key = key or ec.generate_private_key(ec.SECP256R1())
        issuer_key = key if by is None else by.key
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(name) if by is None else by.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at(start))
            .not_valid_after(at(start + days * DAY))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        )
        super().__init__(builder.sign(issuer_key, hashes.SHA256()), key)

    def issue(
        self,
        name: str = "keeper",
        *uris: str,
        role: str | None = "admin",
        start: int = T0,
        days: int = 90,
        key: Key = None,
        ca: bool = False,
        client: bool = True,
        signs: bool = True,
        **more: Any,
    ) -> Holder:
        """A certificate; the arguments make what an administrator's must not be."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        names = [*uris, *([f"{ROLE_URI}{role}"] if role is not None else [])]
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at(start))
            .not_valid_after(at(start) + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=signs, key_encipherment=not signs), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if client:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        elif more.get("usage") is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([more["usage"]]), critical=False)
        if names:
            uris_ = [x509.UniformResourceIdentifier(uri) for uri in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(uris_), critical=False)
        return Holder(builder.sign(self.key, hashes.SHA256()), key)


def _usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
        "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})
