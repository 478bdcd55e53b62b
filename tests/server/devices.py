"""Devices that become agents, for the tests of the registry."""

import hashlib
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contracts.jose import b64encode
from server.agents.activation import Activated, ProvenDevice
from server.keys.pki import fingerprint_of
from tests.support.serverside import ServerSide

NOW = 1_800_000_000
ISSUER = "https://license.example"


def make_csr(key: ec.EllipticCurvePrivateKey) -> str:
    """A certificate request in PEM."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(Encoding.PEM).decode()


def public_jwk_of(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """The public half as a JWK."""
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return {"kty": "EC", "crv": "P-256", "x": b64encode(point[1:33]), "y": b64encode(point[33:])}


_SCALARS = [ec.derive_private_key(number, ec.SECP256R1()) for number in range(1001, 1005)]


@dataclass
class Device:
    """A device with its keys. Devices share keys: what the registry does with them does not depend on that."""

    number: int
    hw_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.hw_id = hashlib.sha256(f"device {self.number}".encode()).hexdigest()
        self.identity, self.agreement, self.attestation, self.tls = _SCALARS

    def activate(self, server: ServerSide, token_id: int, wanted: str | None = None, now: int = NOW) -> Activated:
        """The end of a provisioning: what was to be proved is proved."""
        identity, agreement, attestation = (public_jwk_of(key) for key in _SCALARS[:3])
        proven = ProvenDevice(self.hw_id, "tpm", "attested", identity, agreement, attestation, make_csr(self.tls), wanted)
        activated: Activated = server.activation.activate(token_id, proven, now)
        return activated

    def come(self, server: ServerSide, wanted: str | None = None, now: int = NOW, *, factory_only: bool = False) -> Activated:
        """The whole way: an enrollment token is made, used, and spent."""
        text = server.enrollment_tokens.create(None, factory_only, 3600, now)
        return self.activate(server, server.enrollment_tokens.use(text, self.hw_id, now), wanted, now)


def der(pem: str) -> bytes:
    """A certificate in PEM as DER."""
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


def fingerprint(pem: str) -> str:
    """Of a certificate in PEM."""
    return fingerprint_of(x509.load_pem_x509_certificate(pem.encode()))
