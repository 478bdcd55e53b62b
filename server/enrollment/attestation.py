"""Verifies a device's evidence: its attestation key has certified its other keys, and each key has its template.

Parts and sections named here are those of the TPM 2.0 Library Specification, revision 1.59. That the attestation key is in the
TPM of the endorsement key is proved by `credential`: only that TPM can decrypt it. Pure: bytes in, values out.
"""

import hmac
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from contracts.enrollment.evidence import CertifiedKey, SoftwareEvidence, TpmEvidence
from contracts.jose import MalformedToken, b64decode

from .tpm_public import (
    AGREEMENT,
    ATTESTATION,
    IDENTITY,
    AttestationError,
    PublicArea,
    Reader,
    Template,
    ecc_key,
    parse_area,
    point_of,
    require_template,
)

__all__ = ["AttestationError", "VerifiedKeys", "read_evidence", "verify_evidence", "verify_software_evidence"]

NONCE_MIN = 16
NONCE_MAX = 32
ATTEST_MAX = 1024
"""Bytes of the longest TPMS_ATTEST that is parsed; one for a key of ours has 175 and the nonce."""

_GENERATED = 0xFF544347  # TPM_GENERATED_VALUE (Part 2, 6.2)
_ATTEST_CERTIFY = 0x8017  # TPM_ST (Part 2, 6.9)
_CLOCK_INFO = 8 + 4 + 4  # and one byte that says yes or no (Part 2, 10.11.1)
_FIRMWARE = 8
_NAME = 34
_POINT = 65
_SIGNATURE = 64


@dataclass(frozen=True, slots=True)
class VerifiedKeys:
    """A device's public keys, each an uncompressed point of P-256.

    Attributes:
        attestation: the key that has certified the other two.
        identity: the key that signs the agent's requests.
        agreement: the key that secrets are encrypted to.
        attestation_name: the attestation key's Name (Part 1, 16); None for software.
    """

    attestation: bytes
    identity: bytes
    agreement: bytes
    attestation_name: bytes | None


def read_evidence(content: dict[str, Any], nonce: bytes, kind: Literal["tpm", "software"]) -> VerifiedKeys:
    """Verifies a device's evidence and returns its keys.

    Args:
        content: `Complete.evidence`.
        nonce: what the server has sent, `NONCE_MIN` to `NONCE_MAX` bytes.
        kind: the backend that the device named in the first step; evidence of the other kind is refused.

    Raises:
        AttestationError: it has another form, or does not verify.
    """
    try:
        if kind == "tpm":
            return verify_evidence(msgspec.convert(content, TpmEvidence, strict=True), nonce)
        return verify_software_evidence(msgspec.convert(content, SoftwareEvidence, strict=True), nonce)
    except msgspec.ValidationError as error:
        raise AttestationError(f"malformed evidence for {kind}: {error}") from None


def verify_evidence(evidence: TpmEvidence, nonce: bytes) -> VerifiedKeys:
    """Verifies that a TPM's keys have their templates, and that the attestation key has certified them with this nonce.

    Raises:
        AttestationError: a key has another template, or is not certified.
        ValueError: the nonce has a length that the server never sends.
    """
    _require_nonce(nonce)
    area = _area(evidence.attestation, ATTESTATION, "attestation key")
    signer = ecc_key(area, "attestation key")
    identity = _certified(evidence.identity, IDENTITY, "identity key", signer, nonce)
    agreement = _certified(evidence.agreement, AGREEMENT, "agreement key", signer, nonce)
    return _distinct(VerifiedKeys(point_of(signer), identity, agreement, area.name))


def verify_software_evidence(evidence: SoftwareEvidence, nonce: bytes) -> VerifiedKeys:
    """Verifies that the attestation key of a device without a TPM has signed the other two, with this nonce.

    Raises:
        AttestationError: a point is invalid, or the signature does not verify.
        ValueError: the nonce has a length that the server never sends.
    """
    _require_nonce(nonce)
    attestation = _decoded(evidence.attestation, _POINT, "attestation key")
    identity = _decoded(evidence.identity, _POINT, "identity key")
    agreement = _decoded(evidence.agreement, _POINT, "agreement key")
    signer = _key_of(attestation, "attestation key")
    for point, what in ((identity, "identity key"), (agreement, "agreement key")):
        _key_of(point, what)
    signed = b"LASE" + bytes([len(nonce)]) + nonce + identity + agreement
    _require_signature(signer, _decoded(evidence.signature, _SIGNATURE, "signature"), signed, "the software evidence")
    return _distinct(VerifiedKeys(attestation, identity, agreement, None))


def _require_nonce(nonce: bytes) -> None:
    if not NONCE_MIN <= len(nonce) <= NONCE_MAX:
        raise ValueError(f"a nonce has {NONCE_MIN} to {NONCE_MAX} bytes, not {len(nonce)}")


def _distinct(keys: VerifiedKeys) -> VerifiedKeys:
    if len({keys.attestation, keys.identity, keys.agreement}) != 3:
        raise AttestationError("the attestation, identity and agreement keys must be three different keys")
    return keys


def _decoded(text: str, size: int, what: str) -> bytes:
    data = _bytes(text, what)
    if len(data) != size:
        raise AttestationError(f"the {what} must have {size} bytes, not {len(data)}")
    return data


def _bytes(text: str, what: str) -> bytes:
    try:
        return b64decode(text)
    except MalformedToken:
        raise AttestationError(f"the {what} is not canonical base64url") from None


def _key_of(point: bytes, what: str) -> ec.EllipticCurvePublicKey:
    try:
        # Of 65 bytes, the library accepts the uncompressed form only.
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise AttestationError(f"the {what} is not an uncompressed point of P-256") from None


def _area(text: str, template: Template, what: str) -> PublicArea:
    area = parse_area(_bytes(text, what), what)
    require_template(area, template, what)
    return area


def _certified(
    certified: CertifiedKey, template: Template, what: str, signer: ec.EllipticCurvePublicKey, nonce: bytes
) -> bytes:
    """The point of a key that the signer has certified."""
    area = _area(certified.public, template, what)
    key = ecc_key(area, what)
    attest = _bytes(certified.attest, f"attestation of the {what}")
    signature = _decoded(certified.signature, _SIGNATURE, f"signature for the {what}")
    _require_signature(signer, signature, attest, f"the attestation of the {what}")
    found = _parse_certify(attest, f"the attestation of the {what}")
    if not hmac.compare_digest(found.extra_data, nonce):
        raise AttestationError(f"the attestation of the {what} was made for another nonce")
    if found.name != area.name:
        raise AttestationError(f"the attestation of the {what} is for another key")
    return point_of(key)


def _require_signature(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes, what: str) -> None:
    half = _SIGNATURE // 2
    der = encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
    try:
        key.verify(der, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise AttestationError(f"{what} is not signed by the attestation key") from None


@dataclass(frozen=True, slots=True)
class _Certify:
    extra_data: bytes
    name: bytes


def _parse_certify(data: bytes, what: str) -> _Certify:
    """A TPMS_ATTEST with a TPMS_CERTIFY_INFO (Part 2, 10.12.12 and 10.12.3)."""
    if len(data) > ATTEST_MAX:
        raise AttestationError(f"{what} has {len(data)} bytes; the limit is {ATTEST_MAX}")
    reader = Reader(data, what)
    if reader.number(4) != _GENERATED:
        raise AttestationError(f"{what} was not generated by a TPM")
    if reader.number(2) != _ATTEST_CERTIFY:
        raise AttestationError(f"{what} does not certify a key")
    signer = reader.sized()
    extra_data = reader.sized()
    reader.take(_CLOCK_INFO)
    safe = reader.number(1)
    reader.take(_FIRMWARE)
    name, qualified = reader.sized(), reader.sized()
    reader.end()
    if safe not in (0, 1) or len(signer) != _NAME or len(name) != _NAME or len(qualified) != _NAME:
        raise AttestationError(f"{what} is malformed")
    return _Certify(extra_data, name)
