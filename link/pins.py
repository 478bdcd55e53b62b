"""Decides whether a server is the right one, by pins, its chain and a time that the core vouches for. Performs no IO.

A pin is the SHA-256 of a public key (SubjectPublicKeyInfo in DER, RFC 7469 section 2.4). The certificate with a pinned key is
the trust anchor: the server's own certificate, or a CA's that the server sends in its chain, the root included.
"""

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
from settings.values import pin_digest

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


def parse_pins(texts: Iterable[object]) -> frozenset[bytes]:
    """The pins of a list.

    Raises:
        ValueError: one of them is not a pin, or the list is empty.
    """
    pins = frozenset(pin_digest(text) for text in texts)
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


def parse_roots(pem: bytes) -> tuple[bytes, ...]:
    """The certificates of a CA file, each in DER.

    Raises:
        ValueError: it holds none, or one that cannot be read.
    """
    return tuple(each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(pem))


def judge(
    chain: Sequence[bytes],
    pins: frozenset[bytes],
    host: str,
    time: int,
    latest: int | None = 0,
    roots: Sequence[bytes] = (),
) -> None:
    """Accepts a server's chain, or says why not.

    What is proven elsewhere: that the peer has the private key of the first certificate (TLS 1.3, CertificateVerify,
    RFC 8446 section 4.4.3).

    Args:
        chain: certificates in DER as the peer sent them, its own first.
        pins: the accepted keys.
        host: the name or address that was to be reached.
        time: seconds since 1970 UTC. The certificates must be valid at some time between this and `latest`.
        latest: seconds since 1970 UTC; before `time`, it is `time`. None for no bound: then no certificate is refused because
            it begins later.
        roots: certificates of CAs in DER, which are the trust anchors in place of pins; empty where pins count.

    Raises:
        PeerRefused: no pinned key in the chain (PIN_MISMATCH), or no valid path from it to this host (TLS).
    """
    if not 0 < len(chain) <= MAX_CHAIN:
        raise PeerRefused(FailCode.TLS, f"the server sent {len(chain)} certificates; it must send 1 to {MAX_CHAIN}")
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        leaf, others = certificates[0], certificates[1:]
        anchors = (
            [x509.load_der_x509_certificate(der) for der in roots]
            if roots
            else [certificate for certificate in certificates if spki_pin(certificate) in pins]
        )
    except Exception:  # noqa: BLE001 - the parser has many words for it, and hostile bytes must not choose one that we miss
        raise PeerRefused(FailCode.TLS, "the server sent a certificate that cannot be read") from None
    if not anchors:
        raise PeerRefused(FailCode.PIN_MISMATCH, "no certificate that the server sent has a pinned key")
    subject: x509.IPAddress | x509.DNSName
    try:
        subject = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    builder = PolicyBuilder().max_chain_depth(MAX_CHAIN)
    if not roots and anchors[0] is leaf:
        # Whom the key belongs to is what the pin says; the certificate must still be for this host and for now.
        own = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
        builder = builder.extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=own)
        anchors, others = [leaf], []
    builder = builder.store(Store(anchors))
    problem = ""
    for instant in _instants(certificates, time, latest):
        try:
            at = builder.time(datetime.fromtimestamp(instant, UTC).replace(tzinfo=None))
            at.build_server_verifier(subject).verify(leaf, others)
            return
        except Exception as error:  # noqa: BLE001 - likewise
            why = re.sub(r" \(encountered processing .*", "", str(error), flags=re.DOTALL)
            problem = problem or _dates(leaf, time, latest) or f"it is not valid for {host}: {why}"
    raise PeerRefused(FailCode.TLS, f"the server's certificate is refused: {problem}"[:400])


def _instants(certificates: Sequence[x509.Certificate], time: int, latest: int | None) -> list[int]:
    """The times at which a chain may become valid between two bounds: the first, and each begin of a certificate."""
    begins = {int(certificate.not_valid_before_utc.timestamp()) for certificate in certificates}
    return [time, *sorted(begin for begin in begins if begin > time and (latest is None or begin <= latest))]


def _dates(leaf: x509.Certificate, time: int, latest: int | None) -> str:
    """Why the dates of the server's own certificate do not fit; empty if they do."""
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    last = None if latest is None else max(time, latest)
    if int(end.timestamp()) < time:
        return f"the certificate is not valid after {end:%Y-%m-%d %H:%M:%SZ}, and it is {_utc(time)} at least"
    if last is not None and int(begin.timestamp()) > last:
        return f"the certificate is not valid before {begin:%Y-%m-%d %H:%M:%SZ}, and it is {_utc(last)} at most"
    return ""


def _utc(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"
