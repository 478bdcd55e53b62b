"""Decides whether the admin CA has issued a certificate to an administrator, and for which role. Pure: DER and times in.

`cryptography.x509.verification` checks the chain. Its own policies are those of the public web and let pass what an
administrator's certificate must not be, so every rule that matters here is a validator below.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from contracts.admin.adminauth import BREAK_GLASS_URI, MAX_NAME_CHARS, ROLE_URI
from contracts.admin.adminca import UNREADABLE, AdminCa, require_p256
from ipc.bounds import MAX_ADMIN_CERTIFICATES

from .roles import Role

_OWN_NAMES = re.compile(
    r"validation failed: |candidates exhausted: |Python extension validator failed: ValueError: "
    r"| \(encountered processing .*\Z",
    re.DOTALL,
)
_MISSING = re.compile(r"invalid extension: ([0-9.]+): Certificate is missing required extension")
_EXTENSIONS = {
    each.dotted_string: name
    for each, name in (
        (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, "authorityKeyIdentifier"),
        (ExtensionOID.BASIC_CONSTRAINTS, "basicConstraints"),
        (ExtensionOID.EXTENDED_KEY_USAGE, "extendedKeyUsage"),
        (ExtensionOID.KEY_USAGE, "keyUsage"),
        (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, "subjectAltName"),
    )
}

_ROLES = {f"{ROLE_URI}{role.name.lower()}": role for role in Role}


class NotIssued(Exception):
    """The certificate does not count.

    Attributes:
        outcome: for the audit log: `other_ca`, `expired`, `not_yet_valid` or `bad_certificate`.
    """

    def __init__(self, outcome: str, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Window:
    """The instants that may be now, seconds since 1970 UTC.

    Attributes:
        earliest: the first of them.
        latest: the last; None where nothing on this machine bounds the time from above.
    """

    earliest: int
    latest: int | None


@dataclass(frozen=True, slots=True)
class Administrator:
    """Whom a certificate names.

    Attributes:
        role: what they may do.
        name: the common name.
        digests: SHA-256 of the certificates that were shown, hex; the administrator's own first.
        key: verifies their signatures.
        ends: when the certificate ends, seconds since 1970 UTC.
        break_glass: the agent for which it is a break-glass certificate; None for an ordinary one.
    """

    role: Role
    name: str
    digests: tuple[str, ...]
    key: ec.EllipticCurvePublicKey
    ends: int
    break_glass: str | None = None


def _certifies(_policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    require_p256(certificate)
    if not usage.key_cert_sign:
        raise ValueError("its CA's key may not sign certificates (keyUsage)")


def _is_no_ca(_policy: Policy, _certificate: x509.Certificate, constraints: x509.BasicConstraints | None) -> None:
    if constraints is not None and constraints.ca:
        raise ValueError("it is the certificate of a CA")


def _signs(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature:
        raise ValueError("its key may not sign (keyUsage)")


def _is_for_clients(_policy: Policy, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise ValueError("it is not for clients (extendedKeyUsage)")


def _has_one_role(_policy: Policy, certificate: x509.Certificate, names: x509.SubjectAlternativeName) -> None:
    require_p256(certificate)
    _role(names)
    _break_glass(names)


def _break_glass(names: x509.SubjectAlternativeName) -> str | None:
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    found = [uri.removeprefix(BREAK_GLASS_URI) for uri in uris if uri.startswith(BREAK_GLASS_URI)]
    if len(found) > 1 or "" in found:
        raise ValueError("a break-glass certificate must name one agent")
    return found[0] if found else None


def _role(names: x509.SubjectAlternativeName) -> Role:
    found = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(ROLE_URI)]
    if len(found) != 1 or found[0] not in _ROLES:
        raise ValueError(f"it must name one role as a URI, such as {ROLE_URI}viewer")
    return _ROLES[found[0]]


_CA = (
    ExtensionPolicy.webpki_defaults_ca()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _certifies)
)
_ADMINISTRATOR = (
    ExtensionPolicy.webpki_defaults_ee()
    .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_no_ca)
    .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs)
    .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _is_for_clients)
    .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, _has_one_role)
)


def judge(ca: AdminCa, shown: Sequence[bytes], window: Window) -> Administrator:
    """The administrator to whom the admin CA has issued a certificate.

    A certificate counts if it, the one between and the CA are all valid at one instant of the window.

    Args:
        ca: whose certificates count.
        shown: the administrator's certificate in DER, then at most one between it and the CA.
        window: the time.

    Raises:
        NotIssued: the certificate does not count.
    """
    if not 1 <= len(shown) <= MAX_ADMIN_CERTIFICATES:
        raise NotIssued("bad_certificate", f"show 1 to {MAX_ADMIN_CERTIFICATES} certificates")
    try:
        chain = [x509.load_der_x509_certificate(der) for der in shown]
        leaf = chain[0]
        name, key, names = _name(leaf), require_p256(leaf), leaf.extensions
        dates = [(each.not_valid_before_utc, each.not_valid_after_utc) for each in chain]
        alternatives = names.get_extension_for_class(x509.SubjectAlternativeName).value
        role, break_glass = _role(alternatives), _break_glass(alternatives)
    except x509.ExtensionNotFound:
        raise NotIssued("bad_certificate", f"the certificate names no role as a URI, such as {ROLE_URI}viewer") from None
    except UNREADABLE as error:
        raise NotIssued("bad_certificate", f"the certificate cannot be used: {str(error)[:200]}") from None
    problem = _verify(ca, chain, dates, window)
    if problem is not None:
        raise problem
    digests = tuple(hashlib.sha256(der).hexdigest() for der in shown)
    return Administrator(role, name, digests, key, int(leaf.not_valid_after_utc.timestamp()), break_glass)


def _name(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = found[0].value if len(found) == 1 else ""
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise ValueError(f"its subject must have one common name of 1 to {MAX_NAME_CHARS} printable characters")
    return name


def _reason(error: Exception) -> str:
    """What the library says of a chain, without its own names and without those of this code."""
    text = _OWN_NAMES.sub("", str(error))
    missing = _MISSING.match(text)
    if missing is not None:
        return f"the extension {_EXTENSIONS.get(missing[1], missing[1])} is missing"
    return text[:200]


def _verify(
    ca: AdminCa, chain: list[x509.Certificate], dates: list[tuple[datetime, datetime]], window: Window
) -> NotIssued | None:
    """Why none of the CAs vouches for the chain; None if one does."""
    begins, ends = max(begin for begin, _ in dates), min(end for _, end in dates)
    problem = NotIssued("other_ca", "the admin CA of this agent has not issued this certificate")
    for anchor in ca.certificates:
        first = max(begins, anchor.not_valid_before_utc)
        last = min(ends, anchor.not_valid_after_utc)
        at = min(max(datetime.fromtimestamp(window.earliest, UTC), first), last)
        builder = PolicyBuilder().store(Store([anchor])).time(at).max_chain_depth(1)
        verifier = builder.extension_policies(ca_policy=_CA, ee_policy=_ADMINISTRATOR).build_client_verifier()
        try:
            verifier.verify(chain[0], chain[1:])
        except (VerificationError, *UNREADABLE) as error:
            if chain[-1].issuer == anchor.subject:
                problem = NotIssued("other_ca", f"the admin CA does not vouch for this certificate: {_reason(error)}")
            continue
        # It is the CA's. Only now do dates matter: what a stranger's certificate says of its dates is nobody's business.
        if last.timestamp() < window.earliest:
            problem = NotIssued("expired", f"the certificate, or its CA's, ended at {last:%Y-%m-%d %H:%M:%SZ}")
        elif window.latest is not None and first.timestamp() > window.latest:
            problem = NotIssued("not_yet_valid", f"the certificate, or its CA's, begins at {first:%Y-%m-%d %H:%M:%SZ}")
        else:
            return None
    return problem
