"""Declares a device's evidence of its hardware, as JSON. Types only.

Bytes are base64url without padding. `Complete.evidence` (`enrollment`) is a `TpmEvidence` or a `SoftwareEvidence`, by
the backend that `Begin` named. Parts and sections named here are those of the TPM 2.0 Library Specification, revision 1.59.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

_ALPHABET = r"^[A-Za-z0-9_-]+$"
Area = Annotated[str, Meta(pattern=_ALPHABET, min_length=1, max_length=1366)]
"""A marshalled TPMT_PUBLIC or TPMS_ATTEST: at most 1024 bytes."""
Certificate = Annotated[str, Meta(pattern=_ALPHABET, min_length=1, max_length=5462)]
"""DER: at most 4096 bytes."""
Signature = Annotated[str, Meta(pattern=_ALPHABET, min_length=86, max_length=86)]
"""ES256 (RFC 7518, 3.4): r || s, 64 bytes."""
Point = Annotated[str, Meta(pattern=_ALPHABET, min_length=87, max_length=87)]
"""An uncompressed point of P-256 (SEC 1, 2.3.3): 65 bytes."""


class Endorsement(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The key that identifies a TPM.

    Attributes:
        public: TPMT_PUBLIC (Part 2, 12.2.4) of template L-2 or L-1 of the TCG EK Credential Profile.
        certificate: the manufacturer's, if the TPM has one.
    """

    public: Area
    certificate: Certificate | None = None


class CertifiedKey(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The attestation key's certification of another key (TPM2_Certify: Part 3, 18.2).

    Attributes:
        public: the other key's TPMT_PUBLIC.
        attest: TPMS_ATTEST (Part 2, 10.12.12) with the server's nonce as its extraData.
        signature: by the attestation key over SHA-256 of `attest`.
    """

    public: Area
    attest: Area
    signature: Signature


class TpmEvidence(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Proves that two keys are in the same TPM as the attestation key.

    Attributes:
        attestation: the attestation key's TPMT_PUBLIC.
        identity: the key that signs the agent's requests.
        agreement: the key that secrets are encrypted to.
    """

    attestation: Area
    identity: CertifiedKey
    agreement: CertifiedKey


class SoftwareEvidence(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Proves that the holder of the attestation key names two other keys. It proves nothing about where they are.

    Attributes:
        attestation: the attestation key's point.
        identity: the identity key's.
        agreement: the key-agreement key's.
        signature: by the attestation key over `LASE`, the nonce with its length in one byte, and the points of identity and
            key-agreement key.
    """

    attestation: Point
    identity: Point
    agreement: Point
    signature: Signature
