"""Who is at the other end: a client certificate, known by its fingerprint. Nothing here performs IO."""

import contextlib
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

AGENT_URI = "urn:license-agent:agent:"
"""How a client certificate names its agent: this, then the agent's id."""
MAX_CERTIFICATE_CHARS = 16 * 1024
MAX_SERIAL_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Peer:
    """A client certificate that the TLS layer has verified. Times are seconds since 1970 UTC.

    Attributes:
        fingerprint: SHA-256 of its DER, hex.
        not_before: it is valid from then on.
        not_after: it is valid until then.
        number: its serial number, hex.
        agent_id: the agent that it names; empty if none.
        serial: the agent's number; None if it has none.
    """

    fingerprint: str
    not_before: int
    not_after: int
    number: str = ""
    agent_id: str = ""
    serial: int | None = None

    def valid_at(self, now: int) -> bool:
        """Whether it is within its dates: it may have ended on a connection that is still open."""
        return self.not_before <= now <= self.not_after


def peer_of(der: bytes) -> Peer:
    """The peer of a certificate in DER.

    Raises:
        ValueError: it is no certificate.
    """
    certificate = x509.load_der_x509_certificate(der)
    return Peer(
        hashlib.sha256(der).hexdigest(),
        int(certificate.not_valid_before_utc.timestamp()),
        int(certificate.not_valid_after_utc.timestamp()),
        f"{certificate.serial_number:x}",
        *_named(certificate),
    )


def _named(certificate: x509.Certificate) -> tuple[str, int | None]:
    """The agent's id and number, as `pki.make_client_certificate` writes them."""
    names: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [uri for uri in alternative.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(AGENT_URI)]
    numbers = [str(entry.value) for entry in certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)]
    sound = len(numbers) == 1 and numbers[0].isascii() and numbers[0].isdigit() and len(numbers[0]) <= MAX_SERIAL_DIGITS
    return names[0].removeprefix(AGENT_URI) if len(names) == 1 else "", int(numbers[0]) if sound else None


@lru_cache(maxsize=1024)
def peer_of_header(value: bytes) -> Peer:
    """The peer of nginx' `$ssl_client_escaped_cert`: PEM, URL-encoded.

    Raises:
        ValueError: it is no certificate.
    """
    if len(value) > MAX_CERTIFICATE_CHARS:
        raise ValueError("a certificate that long is none of ours")
    return peer_of(x509.load_pem_x509_certificate(unquote_to_bytes(value)).public_bytes(Encoding.DER))
