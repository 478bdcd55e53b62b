"""Parses client certificates: fingerprint, dates, and the agent that a certificate names. Pure."""

import contextlib
import hashlib
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.x509.oid import NameOID

AGENT_URI = "urn:license-agent:agent:"
"""How a client certificate names its agent: this, then the agent's id."""
OPERATOR_URI = "urn:license-agent:operator:"
"""How a client certificate names an operator's account: this, then the account's name."""
DEVICE_URI = "urn:license-agent:device:"
"""How a client certificate names a device that speaks hawkBit's DDI: this, then the device's id."""
MAX_CERTIFICATE_CHARS = 16 * 1024
MAX_SERIAL_DIGITS = 15
RENEWABLE_S = 400 * 86_400
"""How far outside its dates a certificate can be renewed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A client certificate that has been verified: by the TLS layer, or by `clientchain`. Times are seconds since 1970 UTC.

    Attributes:
        fingerprint: SHA-256 of its DER, in hex.
        not_before: the first second of its validity.
        not_after: the last second of its validity.
        number: its serial number, in hex.
        agent_id: the agent that it names; empty if it names none.
        serial: the agent's serial number; None if it has none.
        device_id: the device that it names, which speaks hawkBit's DDI; empty if it names none.
    """

    fingerprint: str
    not_before: int
    not_after: int
    number: str = ""
    agent_id: str = ""
    serial: int | None = None
    device_id: str = ""

    def valid_at(self, now: int) -> bool:
        """Whether it is within its dates. It may have expired on a connection that is still open."""
        return self.not_before <= now <= self.not_after

    def renewable_at(self, now: int) -> bool:
        """Whether it may still be renewed, though not used.

        It may have ended while a seasonal machine was off, or begin later because this server's clock was wrong when it
        issued it.
        """
        return self.not_before - RENEWABLE_S <= now <= self.not_after + RENEWABLE_S


def peer_of(der: bytes) -> Peer:
    """Parses a certificate in DER.

    Raises:
        ValueError: the bytes are not a certificate.
    """
    certificate = x509.load_der_x509_certificate(der)
    return Peer(
        hashlib.sha256(der).hexdigest(),
        int(certificate.not_valid_before_utc.timestamp()),
        int(certificate.not_valid_after_utc.timestamp()),
        f"{certificate.serial_number:x}",
        *_named(certificate),
    )


def _named(certificate: x509.Certificate) -> tuple[str, int | None, str]:
    """The agent's id and serial number, and the device's id, where `pki` writes them."""
    uris: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = alternative.get_values_for_type(x509.UniformResourceIdentifier)
    numbers = [str(entry.value) for entry in certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)]
    sound = len(numbers) == 1 and numbers[0].isascii() and numbers[0].isdigit() and len(numbers[0]) <= MAX_SERIAL_DIGITS
    return _one(uris, AGENT_URI), int(numbers[0]) if sound else None, _one(uris, DEVICE_URI)


def _one(uris: list[str], prefix: str) -> str:
    """What follows the prefix in the only URI that has it; empty if none has, or several."""
    found = [uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix)]
    return found[0] if len(found) == 1 else ""


def certificate_of_header(value: bytes) -> bytes:
    """The PEM in nginx' `$ssl_client_escaped_cert`, where it is URL-encoded.

    Raises:
        ValueError: it is too long.
    """
    if len(value) > MAX_CERTIFICATE_CHARS:
        raise ValueError(f"the certificate has more than {MAX_CERTIFICATE_CHARS} characters")
    return unquote_to_bytes(value)
