"""Who the server is: pins and chains, judged at a time that the core vouches for. Nothing here performs IO.

A pin is the SHA-256 of a public key (SubjectPublicKeyInfo in DER, RFC 7469 section 2.4). The certificate with a pinned key is
the trust anchor: the server's own certificate, or a CA's that the server sends in its chain, the root included.
"""

import base64
import binascii
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
)

from ipc.linkmessages import FailCode

MAX_CHAIN = 8
"""Most certificates that are looked at; a server that sends more is refused."""

_HOST = re.compile(r"(?=.{1,253}\Z)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class PeerRefused(Exception):
    """The peer is not the server that was meant.

    Attributes:
        code: PIN_MISMATCH or TLS.
    """

    def __init__(self, code: FailCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def parse_pin(text: object) -> bytes:
    """The 32 bytes of a pin: `sha256:` and base64 or hex.

    Raises:
        ValueError: it is anything else.
    """
    kind, _, digest = text.partition(":") if isinstance(text, str) else ("", "", "")
    try:
        raw = bytes.fromhex(digest) if len(digest) == 64 else base64.b64decode(digest, validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    if kind != "sha256" or len(raw) != 32:
        raise ValueError("a pin is 'sha256:' and the SHA-256 of a public key (SPKI) in base64 or hex")
    return raw


def parse_pins(texts: Iterable[object]) -> frozenset[bytes]:
    """The pins of a list.

    Raises:
        ValueError: one of them is none, or there is none.
    """
    pins = frozenset(parse_pin(text) for text in texts)
    if not pins:
        raise ValueError("there must be at least one pin")
    return pins


def spki_pin(certificate: x509.Certificate) -> bytes | None:
    """The pin that a certificate's key would have; None for a kind of key that cannot be read here."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def is_host(text: str) -> bool:
    """Whether a text is an IP address or a DNS name (RFC 1123 section 2.1)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST.fullmatch(text) is not None
    return True


def judge(chain: Sequence[bytes], pins: frozenset[bytes], host: str, time: int) -> None:
    """Accepts a server's chain, or says why not.

    What is proven elsewhere: that the peer has the private key of the first certificate (TLS 1.3, CertificateVerify,
    RFC 8446 section 4.4.3).

    Args:
        chain: certificates in DER as the peer sent them, its own first.
        pins: the accepted keys.
        host: the name or address that was to be reached.
        time: seconds since 1970 UTC, at which the certificates must be valid.

    Raises:
        PeerRefused: no pinned key in the chain (PIN_MISMATCH), or no valid path from it to this host (TLS).
    """
    if not 0 < len(chain) <= MAX_CHAIN:
        raise PeerRefused(FailCode.TLS, f"the server sent {len(chain)} certificates; 1 to {MAX_CHAIN} are taken")
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        leaf, others = certificates[0], certificates[1:]
        anchors = [certificate for certificate in certificates if spki_pin(certificate) in pins]
    except Exception:  # noqa: BLE001 - the parser has many words for it, and hostile bytes must not choose one that we miss
        raise PeerRefused(FailCode.TLS, "the server sent a certificate that cannot be read") from None
    if not anchors:
        raise PeerRefused(FailCode.PIN_MISMATCH, "no certificate that the server sent has a pinned key")
    subject: x509.IPAddress | x509.DNSName
    try:
        subject = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    builder = PolicyBuilder().time(datetime.fromtimestamp(time, UTC).replace(tzinfo=None)).max_chain_depth(MAX_CHAIN)
    if anchors[0] is leaf:
        # Whom the key belongs to is what the pin says; the certificate must still be for this host and for now.
        own = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
        builder = builder.extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=own)
        anchors, others = [leaf], []
    try:
        builder.store(Store(anchors)).build_server_verifier(subject).verify(leaf, others)
    except Exception as error:  # noqa: BLE001 - likewise
        why = re.sub(r" \(encountered processing .*", "", str(error), flags=re.DOTALL)
        raise PeerRefused(FailCode.TLS, f"the server's certificate does not hold for {host}: {why}"[:400]) from None
