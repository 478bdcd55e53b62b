"""Decides whether a TPM's manufacturer vouches for an endorsement key, and computes the hardware id.

`cryptography.x509.verification` builds and checks the chain to a root that the operator trusts. This file checks what only an
endorsement certificate has: the key, the extensions and the names of the TCG EK Credential Profile 2.5. It does not consult the
manufacturers' revocation lists. Pure: bytes, certificates and a time in, an error or nothing out.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from .tpm_public import AttestationError, endorsement_key

Value = TypeVar("Value", bound=x509.ExtensionType)

CERTIFICATE_MAX = 4096
"""Bytes of the longest endorsement certificate that is parsed."""
DEPTH_MAX = 4
"""Intermediate CAs between an endorsement certificate and a root, at most."""

_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
# TCG EK Credential Profile 2.5, 3.2
_EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
_TPM_NAMES = {
    "manufacturer": x509.ObjectIdentifier("2.23.133.2.1"),
    "model": x509.ObjectIdentifier("2.23.133.2.2"),
    "version": x509.ObjectIdentifier("2.23.133.2.3"),
}
_CHECKED = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}


def hardware_id(ek_public: bytes) -> str:
    """The SHA-256 of an endorsement key's public area, in hex.

    The key must have exactly one of the two fixed templates (TCG EK Credential Profile 2.5, L-2 and L-1). Without a certificate
    that says nothing about who made it; it says that a TPM uses such a key for credentials only.

    Raises:
        AttestationError: the public area has another template.
    """
    endorsement_key(ek_public)
    return hashlib.sha256(ek_public).hexdigest()


def verify_ek_certificate(
    certificate_der: bytes,
    ek_public: bytes,
    roots: Sequence[x509.Certificate],
    now: datetime,
    intermediates: Sequence[x509.Certificate] = (),
) -> None:
    """Returns if a CA that the operator trusts certifies that this endorsement key is in a TPM.

    Args:
        certificate_der: from the TPM's NV memory.
        ek_public: the endorsement key's public area.
        roots: manufacturers' CAs that the operator trusts; their dates and use are checked like those of any other CA.
        now: with a time zone.
        intermediates: CAs that the operator has copied; they count only if a root has certified them.

    Raises:
        AttestationError: the certificate is not for this key, not an endorsement certificate, or leads to no trusted root.
    """
    key = endorsement_key(ek_public)
    if len(certificate_der) > CERTIFICATE_MAX:
        raise AttestationError(f"the endorsement certificate has {len(certificate_der)} bytes; the limit is {CERTIFICATE_MAX}")
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        _parse(certificate)
    except _UNREADABLE:
        raise AttestationError("the endorsement certificate cannot be read") from None
    if certificate.public_key() != key:
        raise AttestationError("the endorsement certificate is for another key than the TPM's endorsement key")
    if now < certificate.not_valid_before_utc:
        raise AttestationError("the endorsement certificate is not valid yet")
    if now > certificate.not_valid_after_utc:
        raise AttestationError("the endorsement certificate has expired")
    _require_ek_use(certificate.extensions, key)
    _require_chain(certificate, roots, now, intermediates)


def _parse(certificate: x509.Certificate) -> None:
    """Parses all of a certificate; the library parses each part when it is first read, and raises one of `_UNREADABLE`."""
    _ = certificate.issuer, certificate.subject, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    _ = certificate.public_key(), certificate.extensions, certificate.signature_hash_algorithm


def _require_ek_use(extensions: x509.Extensions, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> None:
    """Extensions of an endorsement certificate (TCG EK Credential Profile 2.5, 3.2; RFC 5280, 4.2)."""
    for extension in extensions:
        if extension.critical and extension.oid not in _CHECKED:
            raise AttestationError(f"the endorsement certificate has a critical extension {extension.oid.dotted_string}")
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise AttestationError("the endorsement certificate is a CA certificate")
        if isinstance(value, x509.ExtendedKeyUsage) and _EK_USAGE not in value:
            raise AttestationError("the endorsement certificate is for another extended key usage")
    usage = _find(extensions, x509.KeyUsage)
    if usage is None or not (usage.key_agreement if isinstance(key, ec.EllipticCurvePublicKey) else usage.key_encipherment):
        raise AttestationError("the endorsement certificate does not allow the key usage of an endorsement key")
    alternatives = _find(extensions, x509.SubjectAlternativeName)
    names = [] if alternatives is None else alternatives.get_values_for_type(x509.DirectoryName)
    for word, oid in _TPM_NAMES.items():
        if not any(name.get_attributes_for_oid(oid) for name in names):
            raise AttestationError(f"the endorsement certificate does not name the TPM's {word}")


def _find(extensions: x509.Extensions, kind: type[Value]) -> Value | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


# The chain


def _require_cert_sign(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.key_cert_sign:
        raise ValueError("keyCertSign")


_CA_EXTENSIONS = (
    # Makers mark these critical, or not. The verifier itself checks the CA bit and the path length.
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _require_cert_sign)
    # A CA that insists on anything else is refused: the verifier reads these, but does not apply them to an EK certificate.
    .may_be_present(x509.NameConstraints, Criticality.NON_CRITICAL, None)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.NON_CRITICAL, None)
    .may_be_present(x509.SubjectAlternativeName, Criticality.NON_CRITICAL, None)
    .may_be_present(x509.AuthorityKeyIdentifier, Criticality.NON_CRITICAL, None)
    .may_be_present(x509.SubjectKeyIdentifier, Criticality.NON_CRITICAL, None)
    .may_be_present(x509.AuthorityInformationAccess, Criticality.NON_CRITICAL, None)
)
_LEAF_EXTENSIONS = ExtensionPolicy.permit_all()
"""`_require_ek_use` has checked them. The subject may be empty, with a critical directory name instead (RFC 5280, 4.1.2.6)."""

_NOT_A_CA = "the issuer's certificate is not a CA certificate"
_TOO_WEAK = "a certificate is signed with an algorithm or a key that is too weak"
_REASONS = {
    "no interior errors": "no trusted certificate has the name of its issuer",
    "signature does not match": "its issuer has not signed it",
    "2.5.29.30": "the issuer's certificate has a critical extension that is not supported: name constraints",
    "unsupported name constraint": "the issuer's certificate has name constraints that are not supported",
    "incorrect criticality": "the issuer's certificate has a critical extension that is not supported",
    "critical extension": "the issuer's certificate has a critical extension that is not supported",
    "basicConstraints": _NOT_A_CA,
    "2.5.29.15": _NOT_A_CA,
    "keyCertSign": _NOT_A_CA,
    "path length": "the issuer's certificate does not allow a chain of this length",
    "max depth": f"the chain has more than {DEPTH_MAX} intermediate certificates",
    "Forbidden": _TOO_WEAK,
    "too weak": _TOO_WEAK,
}
"""What the verifier's error contains, and how an administrator reads it. An error that is not listed is passed on as it is."""


def _require_chain(
    leaf: x509.Certificate, roots: Sequence[x509.Certificate], now: datetime, intermediates: Sequence[x509.Certificate]
) -> None:
    """A path from the certificate to a root (RFC 5280, 6.1)."""
    readable = [authority for authority in roots if _is_readable(authority)]
    if not readable:
        why = "no trusted certificate is configured" if not roots else "the trusted certificate cannot be read"
        raise AttestationError(f"the endorsement certificate does not lead to a trusted root: {why}")
    between = [authority for authority in intermediates if _is_readable(authority)]
    verifier = (
        PolicyBuilder()
        .store(Store(readable))
        .time(now)
        .max_chain_depth(DEPTH_MAX)
        .extension_policies(ca_policy=_CA_EXTENSIONS, ee_policy=_LEAF_EXTENSIONS)
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, between)
    except (VerificationError, *_UNREADABLE) as error:
        why = _reason(str(error), [*readable, *between], now)
        raise AttestationError(f"the endorsement certificate does not lead to a trusted root: {why}") from None


def _is_readable(certificate: x509.Certificate) -> bool:
    try:
        _parse(certificate)
    except _UNREADABLE:
        return False
    return True


def _reason(text: str, authorities: Sequence[x509.Certificate], now: datetime) -> str:
    if "validation time" in text:
        ended = any(now > authority.not_valid_after_utc for authority in authorities)
        return f"the issuer's certificate {'has expired' if ended else 'is not valid yet'}"
    return next((reason for part, reason in _REASONS.items() if part in text), text)
