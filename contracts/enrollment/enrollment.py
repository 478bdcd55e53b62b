"""Declares the messages that make a device an agent: enrollment token, proof of its hardware, certificate. Types only.

    POST /api/v1/provision            Begin  ->  Begun     (signed by a rotation key; nothing is granted yet)
    POST /api/v1/provision/complete   Complete, signed by the new identity key  ->  Completed

An enrollment token is called `claim` on the wire. It is encrypted to the server's enrollment key, together with the hardware id
and the attestation key that it is for. The server answers with a credential that only the TPM with both keys can decrypt
(TPM2_ActivateCredential, TPM 2.0 Library Part 1, 24; Part 3, 12.5). A device may repeat both steps.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.exchange import AgentId, Hash, Number, Pem, Reply, RequestId
from contracts.jose import b64encode

COMPLETE_TYPE = "provision-complete+jwt"
NOBODY = ""
"""The agent id in replies to a device that has none yet."""

Opaque = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+\Z", max_length=8192)]
"""Bytes in base64url."""
Backend = Literal["tpm", "software"]


class Claim(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What is encrypted in `Begin.claim` (JWE, ECDH-ES, A256GCM).

    Attributes:
        claim: the text of the enrollment token.
        hw_id: as in `Begin`.
        attestation: SHA-256 of the attestation key's area or point in `Begin`, hex.
    """

    claim: Annotated[str, Meta(min_length=16, max_length=256)]
    hw_id: Hash
    attestation: Hash


class Begin(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A device's request to be provisioned.

    Attributes:
        v: version of these forms.
        request_id: echoed in the reply.
        claim: compact JWE around a `Claim`.
        hw_id: SHA-256 of the endorsement key's public area, in hex; for software, what identifies the machine.
        backend: what protects the keys.
        endorsement_public: TPMT_PUBLIC of the endorsement key; None for software.
        endorsement_certificate: its certificate in DER, if the TPM has one.
        attestation: TPMT_PUBLIC of the attestation key; for software its public point.
    """

    v: Literal[1] = 1
    request_id: RequestId
    claim: Annotated[str, Meta(min_length=1, max_length=8192)]
    hw_id: Hash
    backend: Backend
    endorsement_public: Opaque | None = None
    endorsement_certificate: Opaque | None = None
    attestation: Opaque


class Begun(Reply, frozen=True):
    """The server's challenge to the device.

    Attributes:
        session: names this attempt.
        nonce: to be certified along with the keys, 32 bytes, base64url.
        credential_blob: TPM2B_ID_OBJECT's content; None for software.
        encrypted_secret: TPM2B_ENCRYPTED_SECRET's content; None for software.
    """

    session: RequestId
    nonce: Opaque
    credential_blob: Opaque | None = None
    encrypted_secret: Opaque | None = None


class Complete(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The device's answer; the JWS around it is signed by its identity key, with that key's thumbprint as `kid`.

    Attributes:
        v: version of these forms.
        request_id: echoed in the reply.
        session: from `Begun`.
        proof: HMAC-SHA256 by the activated credential over `proof_input`, base64url; None for software.
        evidence: as in `contracts.enrollment.evidence`: the attestation key's certification of the other keys.
        identity_key: public JWK.
        agreement_key: public JWK.
        csr: PKCS #10 request in PEM for the TLS key.
        agent_id: the id in the device's configuration; None lets the server choose.
    """

    v: Literal[1] = 1
    request_id: RequestId
    session: RequestId
    proof: Opaque | None = None
    evidence: dict[str, Any]
    identity_key: dict[str, str]
    agreement_key: dict[str, str]
    csr: Pem
    agent_id: AgentId | None = None


class Completed(Reply, frozen=True):
    """The device is an agent now; `agent_id` is its id.

    Attributes:
        serial: its serial number; it keeps it when it is provisioned again.
        attestation: how sure the server is of the hardware.
        certificates: PEM; the agent's own, then those between it and the root.
        key_set: the root-signed key set.
    """

    serial: Number
    attestation: Literal["attested", "tpm-unattested", "software"]
    certificates: Annotated[tuple[Pem, ...], Meta(min_length=1, max_length=4)]
    key_set: Annotated[str, Meta(min_length=1, max_length=65_536)]


def proof_input(session: str, nonce: bytes, csr: str) -> bytes:
    """What the activated credential authenticates: this attempt, and the certificate request."""
    return b"\0".join((b"license-agent/provision/1", session.encode(), b64encode(nonce).encode(), csr.encode()))
