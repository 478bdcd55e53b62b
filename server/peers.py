"""Who is at the other end: a client certificate, known by its fingerprint. Nothing here performs IO."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

MAX_CERTIFICATE_CHARS = 16 * 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """A client certificate that the TLS layer has verified. Times are seconds since 1970 UTC.

    Attributes:
        fingerprint: SHA-256 of its DER, hex.
        not_before: it is valid from then on.
        not_after: it is valid until then.
    """

    fingerprint: str
    not_before: int
    not_after: int

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
    )


@lru_cache(maxsize=1024)
def peer_of_header(value: bytes) -> Peer:
    """The peer of nginx' `$ssl_client_escaped_cert`: PEM, URL-encoded.

    Raises:
        ValueError: it is no certificate.
    """
    if len(value) > MAX_CERTIFICATE_CHARS:
        raise ValueError("a certificate that long is none of ours")
    return peer_of(x509.load_pem_x509_certificate(unquote_to_bytes(value)).public_bytes(Encoding.DER))
