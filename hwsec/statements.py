"""Encodes what a backend says of itself to a verifier that does not trust the machine. Nothing here performs IO.

Parts and sections named here are those of the TPM 2.0 Library Specification, revision 1.59.
"""

from dataclasses import dataclass

POINT_BYTES = 65
"""An uncompressed point of P-256 (SEC 1, 2.3.3)."""
SIGNATURE_BYTES = 64
"""ES256: r || s, 32 bytes each, big-endian (RFC 7518, 3.4)."""
NONCE_MAX = 32
"""Bytes of a nonce; any TPM takes as much qualifying data (Part 2, 10.4.3)."""


@dataclass(frozen=True, slots=True)
class Certification:
    """What the hardware says of the audit value, signed by its attestation key.

    Attributes:
        attested: the signed bytes. From a TPM a marshalled TPMS_ATTEST (Part 2, 10.12.12) with the nonce as its extraData
            and the audit index as contents; from the other backends what `software_attestation` makes.
        signature: ES256 over SHA-256(attested), `SIGNATURE_BYTES` bytes.
    """

    attested: bytes
    signature: bytes


def software_attestation(nonce: bytes, audit: bytes) -> bytes:
    """What a backend without a TPM signs: `LASW`, the nonce with its length in one byte, the audit value.

    Raises:
        ValueError: the nonce is longer than `NONCE_MAX` bytes.
    """
    return b"LASW" + _sized(nonce) + audit


def _sized(nonce: bytes) -> bytes:
    check_nonce(nonce)
    return bytes([len(nonce)]) + nonce


def check_nonce(nonce: bytes) -> None:
    """Raises ValueError: the nonce is longer than `NONCE_MAX` bytes."""
    if len(nonce) > NONCE_MAX:
        raise ValueError(f"a nonce has at most {NONCE_MAX} bytes, not {len(nonce)}")


@dataclass(frozen=True, slots=True)
class Endorsement:
    """The key that tells this TPM from all others; it comes from the TPM's own seed and outlives a clear by the owner.

    Attributes:
        public: marshalled TPMT_PUBLIC (Part 2, 12.2.4), from template L-2 (ECC P-256) of the TCG EK Credential Profile; where
            the TPM has no such curve, L-1 (RSA 2048). Coordinates have their full length. The hardware id is SHA-256 over this.
        certificate: the manufacturer's, in DER, from the TPM's NV memory; None where the TPM has none for this key.
    """

    public: bytes
    certificate: bytes | None


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """What the attestation key says of another key of the same TPM (TPM2_Certify: Part 3, 18.2).

    Attributes:
        public: the other key's marshalled TPMT_PUBLIC (Part 2, 12.2.4).
        attest: a marshalled TPMS_ATTEST (Part 2, 10.12.12) with the nonce as its extraData and the key's Name.
        signature: ES256 over SHA-256(attest), `SIGNATURE_BYTES` bytes.
    """

    public: bytes
    attest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class TpmEvidence:
    """That identity and key-agreement key are in the TPM in which the attestation key is.

    Attributes:
        attestation: the attestation key's marshalled TPMT_PUBLIC.
        identity: the identity key.
        agreement: the key-agreement key.
    """

    attestation: bytes
    identity: CertifiedKey
    agreement: CertifiedKey


@dataclass(frozen=True, slots=True)
class SoftwareEvidence:
    """That who has the attestation key names these other two. It says nothing about where they are.

    Attributes:
        attestation: the attestation key's public point, `POINT_BYTES` bytes, as the next two.
        identity: of the identity key.
        agreement: of the key-agreement key.
        signature: ES256 by the attestation key over `software_evidence`.
    """

    attestation: bytes
    identity: bytes
    agreement: bytes
    signature: bytes


Evidence = TpmEvidence | SoftwareEvidence


def software_evidence(nonce: bytes, identity: bytes, agreement: bytes) -> bytes:
    """What a backend without a TPM signs for its keys: `LASE`, the nonce with its length in one byte, both points.

    It cannot be taken for what else an attestation key signs: that begins with `LASW`, or in a TPM with TPM_GENERATED.

    Raises:
        ValueError: the nonce is longer than `NONCE_MAX` bytes, or a point has another length than `POINT_BYTES`.
    """
    if len(identity) != POINT_BYTES or len(agreement) != POINT_BYTES:
        raise ValueError(f"a point has {POINT_BYTES} bytes")
    return b"LASE" + _sized(nonce) + identity + agreement
