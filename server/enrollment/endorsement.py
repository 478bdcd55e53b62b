"""Whose TPM it is: the endorsement key's fixed template, the hardware id that follows from it, the manufacturer's certificate.

The chain is built here and not by `cryptography.x509.verification`: that is made for names of hosts, while these certificates
have a critical subject alternative name with a directory name in it, often no subject, and no use that it knows. Revocation
lists of manufacturers are not asked. Bytes and a time in, nothing out.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID

from .tpm_public import AttestationError, endorsement_key

Value = TypeVar("Value", bound=x509.ExtensionType)

CERTIFICATE_MAX = 4096
"""Bytes of a certificate that is looked at."""
DEPTH_MAX = 4
"""Certificates between the endorsement key's and a root."""

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
_LOOKED_AT = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}
_LOOKED_AT_IN_CA = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE}
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_RSA_BITS = 2048


def check_endorsement(ek_public: bytes) -> None:
    """Whether it is an endorsement key of exactly one of the two fixed templates (TCG EK Credential Profile, L-2 and L-1).

    Without a certificate this says nothing about who made the key. It says what a TPM will do with it, if it is in one: use it
    for nothing but credentials.

    Raises:
        AttestationError: it is not.
    """
    endorsement_key(ek_public)


def hardware_id(ek_public: bytes) -> str:
    """SHA-256 over the public area, in hex: what the device calls its hardware id.

    Raises:
        AttestationError: it is no endorsement key of ours.
    """
    check_endorsement(ek_public)
    return hashlib.sha256(ek_public).hexdigest()


def verify_ek_certificate(
    certificate_der: bytes,
    ek_public: bytes,
    roots: Sequence[x509.Certificate],
    now: datetime,
    intermediates: Sequence[x509.Certificate] = (),
) -> None:
    """Whether somebody whom the operator trusts says that this endorsement key is in a TPM.

    Args:
        certificate_der: as it stands in the TPM's NV memory.
        ek_public: the endorsement key's public area.
        roots: manufacturers' CAs that are trusted. They are held to validity and use like all others.
        now: with a time zone.
        intermediates: the operator's copies of CAs between; trusted only by what the roots say.

    Raises:
        AttestationError: nobody says so.
    """
    key = endorsement_key(ek_public)
    if len(certificate_der) > CERTIFICATE_MAX:
        raise AttestationError(f"the endorsement certificate has {len(certificate_der)} bytes, more than {CERTIFICATE_MAX}")
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        _read_all(certificate)
    except _UNREADABLE:
        raise AttestationError("the endorsement certificate cannot be read") from None
    if certificate.public_key() != key:
        raise AttestationError("the endorsement certificate is for another key than the TPM's endorsement key")
    _require_time(certificate, now, "the endorsement certificate")
    _require_ek_use(certificate.extensions, key)
    reasons: list[str] = []
    if not _anchored(certificate, roots, intermediates, now, 0, reasons):
        why = reasons[-1] if reasons else "no trusted certificate has the name of its issuer"
        raise AttestationError(f"the endorsement certificate does not lead to a trusted root: {why}")


def _read_all(certificate: x509.Certificate) -> None:
    """Reads all that is looked at later; the library does so only when it is asked for, and raises one of `_UNREADABLE`."""
    _ = certificate.issuer, certificate.subject, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    _ = certificate.public_key(), certificate.extensions, certificate.signature_hash_algorithm


def _require_time(certificate: x509.Certificate, now: datetime, what: str) -> None:
    if now < certificate.not_valid_before_utc:
        raise AttestationError(f"{what} is not valid yet")
    if now > certificate.not_valid_after_utc:
        raise AttestationError(f"{what} has expired")


def _require_ek_use(extensions: x509.Extensions, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> None:
    """Extensions of an endorsement certificate (TCG EK Credential Profile 2.5, 3.2; RFC 5280, 4.2)."""
    for extension in extensions:
        if extension.critical and extension.oid not in _LOOKED_AT:
            raise AttestationError(f"the endorsement certificate has a critical extension {extension.oid.dotted_string}")
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise AttestationError("the endorsement certificate is that of a CA")
        if isinstance(value, x509.ExtendedKeyUsage) and _EK_USAGE not in value:
            raise AttestationError("the endorsement certificate is meant for another use")
    usage = _find(extensions, x509.KeyUsage)
    if usage is None or not (usage.key_agreement if isinstance(key, ec.EllipticCurvePublicKey) else usage.key_encipherment):
        raise AttestationError("the endorsement certificate does not allow the use of an endorsement key")
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


def _anchored(
    certificate: x509.Certificate,
    roots: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    now: datetime,
    below: int,
    reasons: list[str],
) -> bool:
    """Whether a chain leads from the certificate, below which there are so many CAs of the chain, to a root."""
    if any(_issued(certificate, root, now, below, reasons) for root in roots):
        return True
    if below >= DEPTH_MAX:
        return False
    return any(
        _issued(certificate, issuer, now, below, reasons) and _anchored(issuer, roots, intermediates, now, below + 1, reasons)
        for issuer in intermediates
        if issuer != certificate
    )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate, now: datetime, below: int, reasons: list[str]) -> bool:
    """Whether `issuer` is a CA, now, and has signed the certificate (RFC 5280, 6.1.3 and 6.1.4); if not, a reason is added."""
    try:
        _read_all(issuer)
    except _UNREADABLE:
        reasons.append("a certificate among the trusted ones or those between cannot be read")
        return False
    if certificate.issuer != issuer.subject:
        return False
    try:
        _require_ca(issuer, below)
        _require_time(issuer, now, "the issuer's certificate")
        _require_signature(certificate, issuer)
    except AttestationError as error:
        reasons.append(str(error))
        return False
    return True


def _require_ca(issuer: x509.Certificate, below: int) -> None:
    extensions = issuer.extensions
    constraints, usage = _find(extensions, x509.BasicConstraints), _find(extensions, x509.KeyUsage)
    unknown = [each.oid for each in extensions if each.critical and each.oid not in _LOOKED_AT_IN_CA]
    if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
        raise AttestationError("the issuer's certificate is not that of a CA")
    if constraints.path_length is not None and constraints.path_length < below:
        raise AttestationError("the issuer's certificate allows no chain of this length")
    if unknown:
        raise AttestationError(f"the issuer's certificate has a critical extension {unknown[0].dotted_string}")


def _require_signature(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    key = issuer.public_key()
    strong = (isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)
    )
    if not strong or not isinstance(certificate.signature_hash_algorithm, _HASHES):
        raise AttestationError("a certificate is signed by an algorithm or a key that is too weak")
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        raise AttestationError("its issuer has not signed it") from None
    except _UNREADABLE:
        raise AttestationError("its signature cannot be read, or is not by such a key as its issuer has") from None
