"""Decides whether one of our CAs has issued a client certificate. Pure: certificates and a time in, an error or nothing out.

At the TLS listener OpenSSL decides this in the handshake. Behind a proxy a certificate is only text in a header: a
process that can write to the socket can write any certificate there. So it counts only if its chain verifies here too
(threat-model T26).
"""

from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for a certificate that is not one, when its parts are read."""


class NotOurs(Exception):
    """None of our CAs has issued this certificate for clients."""


def _certifies(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.key_cert_sign:
        raise ValueError("keyCertSign")


def _is_no_ca(_policy: Policy, _certificate: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if constraints.ca:
        raise ValueError("a CA")


def _signs(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature:
        raise ValueError("digitalSignature")


def _is_for_clients(_policy: Policy, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise ValueError("clientAuth")


# The library's own policies are those of the public web: for a client they let pass what `pki` never issues.
_CA = (
    ExtensionPolicy.webpki_defaults_ca()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _certifies)
)
_CLIENT = (
    ExtensionPolicy.webpki_defaults_ee()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, _is_no_ca)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _signs)
    .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _is_for_clients)
)


class ClientChain:
    """Verifies client certificates against our CAs.

    Args:
        authorities_pem: the issuing CAs and roots in use, in PEM. An issuing CA is a trust anchor by itself, with or without
            the root (RFC 5280, 6.1.1 d).

    Raises:
        ValueError: there is no certificate in it.
    """

    def __init__(self, authorities_pem: str) -> None:
        authorities = x509.load_pem_x509_certificates(authorities_pem.encode())
        self._begins = sorted({authority.not_valid_before_utc for authority in authorities})
        self._builder = PolicyBuilder().store(Store(authorities))
        self._builder = self._builder.max_chain_depth(1).extension_policies(ca_policy=_CA, ee_policy=_CLIENT)

    def require(self, certificate: x509.Certificate, now: int) -> None:
        """Returns if one of our CAs has issued the certificate for a client.

        The caller judges the certificate's own dates (`Peer.valid_at`): an expired one is verified as of its last second, one
        that is not valid yet as of its first. A CA that begins later, because this server's clock was wrong when it was made,
        counts from its first second on if the certificate is valid then.

        Args:
            certificate: what the peer has sent.
            now: seconds since 1970 UTC.

        Raises:
            NotOurs: another CA has issued it, or not for a client.
        """
        try:
            begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            at = min(max(datetime.fromtimestamp(now, UTC), begins), ends)
            instants = (at, *(begin for begin in self._begins if at < begin <= ends))
        except UNREADABLE as problem:
            raise NotOurs(str(problem)[:200]) from None
        problems: list[str] = []
        for instant in instants:
            try:
                self._builder.time(instant).build_client_verifier().verify(certificate, [])
                return
            except (VerificationError, *UNREADABLE) as problem:
                problems.append(str(problem)[:200])
        raise NotOurs(problems[0])
