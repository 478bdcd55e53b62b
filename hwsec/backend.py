"""Defines the contract of a backend, which the TPM, the software fallback and the tests' memory backend keep."""

import struct
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from common.histogram import Histogram

from .errors import BackendState
from .secretmem import SecretBuffer
from .statements import (
    NONCE_MAX,
    POINT_BYTES,
    SIGNATURE_BYTES,
    Certification,
    CertifiedKey,
    Endorsement,
    Evidence,
    SoftwareEvidence,
    TpmEvidence,
    software_attestation,
    software_evidence,
)

__all__ = [
    "ANCHOR_BYTES",
    "DIGEST_BYTES",
    "NONCE_MAX",
    "POINT_BYTES",
    "SIGNATURE_BYTES",
    "Anchor",
    "Backend",
    "BackendState",
    "BackendStatus",
    "Certification",
    "CertifiedKey",
    "Endorsement",
    "Evidence",
    "HardwareClock",
    "SoftwareEvidence",
    "TpmEvidence",
    "software_attestation",
    "software_evidence",
]

DIGEST_BYTES = 32
_ANCHOR = struct.Struct(">4sQ32sIQQQB")
_MAGIC = b"LAA1"
ANCHOR_BYTES = _ANCHOR.size


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the TPM keeps about the newest store.

    Attributes:
        generation: number of the commit.
        digest: SHA-256 of the store file.
        version: the active secret's version, 0 if there is none.
        valid_from: seconds since 1970 UTC.
        valid_until: seconds since 1970 UTC.
        grace_until: seconds since 1970 UTC.
        state: a number that the store's user gives meaning to.
    """

    generation: int
    digest: bytes
    version: int = 0
    valid_from: int = 0
    valid_until: int = 0
    grace_until: int = 0
    state: int = 0

    def encode(self) -> bytes:
        """`ANCHOR_BYTES` bytes, as the NV index holds them."""
        return _ANCHOR.pack(
            _MAGIC,
            self.generation,
            self.digest,
            self.version,
            self.valid_from,
            self.valid_until,
            self.grace_until,
            self.state,
        )

    @classmethod
    def decode(cls, data: bytes) -> "Anchor":
        """The anchor in `data`.

        Raises:
            ValueError: `data` is not an anchor.
        """
        if len(data) != ANCHOR_BYTES or data[:4] != _MAGIC:
            raise ValueError("not an anchor")
        return cls(*_ANCHOR.unpack(data)[1:])


@dataclass(frozen=True, slots=True)
class HardwareClock:
    """The hardware's clock (Part 2, 10.11.1). It only weakens what the agent believes about time, and never proves it.

    Attributes:
        milliseconds: time that the hardware has been powered; without a TPM, the time since the machine was started.
        reset_count: changes with each start of the machine.
        restart_count: resumes since then.
        safe: False while the hardware may have reported a higher value before.
    """

    milliseconds: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """For people and metrics.

    Attributes:
        name: `tpm`, `software` or `memory`.
        available: whether it can be used now.
        detail: a sentence, or names and figures of the hardware.
        protects_stolen_disk: False for the software backend.
        nv_writes: NV writes of this run.
        state: AVAILABLE exactly when `available`; ABSENT if it is not and nothing else was said.
        binding: what states of the machine the KEK is bound to: `none`, `secure-boot` or `custom`.
        hierarchies_open: of `owner`, `endorsement`, `lockout`, those whose auth value is empty.
        lockout_counter: failed authorizations that the TPM counts at present.
        hardware_id: hex SHA-256 that tells this machine from others; None where it cannot be had.
        nv_budget_left: NV writes that may be made now without spending more than the budget; None without NV memory.
        unfitting: answers of this run that did not fit, or that nobody signs; after each the hardware was asked again.
        commands: how long the commands of this run took; None where there are none. It goes on counting.
    """

    name: str
    available: bool
    detail: str
    protects_stolen_disk: bool
    nv_writes: int = 0
    state: BackendState = BackendState.AVAILABLE
    binding: str = "none"
    hierarchies_open: tuple[str, ...] = ()
    lockout_counter: int | None = None
    hardware_id: str | None = None
    nv_budget_left: int | None = None
    unfitting: int = 0
    commands: Histogram | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Keeps `state` and `available` from contradicting each other.

        Raises:
            ValueError: they do.
        """
        if self.available:
            if self.state is not BackendState.AVAILABLE:
                raise ValueError(f"a backend that is {self.state} is not available")
        elif self.state is BackendState.AVAILABLE:
            object.__setattr__(self, "state", BackendState.ABSENT)


class Backend(Protocol):
    """Guards the KEK, the anchor, the audit value and the agent's keys: attestation, identity, key agreement.

    No method is called from two threads at once. All raise BackendUnavailable when the hardware does not answer. After
    `create` a backend is open. One that is not open, or was closed, raises NotEnrolled for all but `create`, `open`,
    `clock`, `random`, `measure_hardware_id`, `endorsement`, `status` and `close`.

    Where the KEK is bound to the machine's state and that is another one, what needs the KEK raises PcrMismatch: `kek`, and
    anchor, counter and audit value, whose auth values derive from it. The keys go on working.
    """

    @property
    def name(self) -> str:
        """`tpm`, `software` or `memory`."""
        ...

    def create(self) -> None:
        """Makes KEK, anchor, audit value and keys.

        Raises:
            AlreadyEnrolled: they exist.
            PcrMismatch, PcrUninitialized: the KEK is to be bound to a state in which it could not be opened.
        """
        ...

    def open(self) -> None:
        """Makes ready what `create` made.

        Raises:
            NotEnrolled: nothing has been created.
            OldFormat: an earlier version has created it.
            ForeignHardware: it was created on other hardware.
        """
        ...

    def kek(self) -> AbstractContextManager[SecretBuffer]:
        """The KEK, in secret memory, for the length of a `with` block.

        Raises:
            PcrMismatch, PcrUninitialized: it is bound to another state of the machine.
        """
        ...

    def read_anchor(self) -> tuple[Anchor | None, int]:
        """The anchor last written (None before the first) and the counter."""
        ...

    def write_anchor(self, anchor: Anchor) -> None:
        """First half of a commit: names the new store."""
        ...

    def increment(self) -> int:
        """Second half of a commit: adds 1 to the counter, which never goes back, and returns it."""
        ...

    def read_audit(self) -> bytes:
        """The audit value: 32 bytes, at first zeros."""
        ...

    def extend_audit(self, head: bytes) -> bytes:
        """Sets the audit value to SHA-256(value || head), as TPM2_NV_Extend does, and returns it."""
        ...

    def certify_audit(self, nonce: bytes) -> Certification:
        """Has the audit value signed by the attestation key, which signs nothing that is not the hardware's own statement.

        Args:
            nonce: of the verifier, at most `NONCE_MAX` bytes; it is part of what is signed.

        Raises:
            AuditEmpty: it has never been extended.
            ValueError: the nonce is too long.
        """
        ...

    def attestation_public(self) -> bytes:
        """Public point of the attestation key: 65 bytes, uncompressed, P-256."""
        ...

    def identity_public(self) -> bytes:
        """Public point of the identity key: 65 bytes, uncompressed, P-256."""
        ...

    def sign(self, message: bytes) -> bytes:
        """ES256 signature of `message` by the identity key: `SIGNATURE_BYTES` bytes, r || s."""
        ...

    def agreement_public(self) -> bytes:
        """Public point of the key-agreement key: 65 bytes, uncompressed, P-256."""
        ...

    def agree(self, peer_point: bytes) -> SecretBuffer:
        """The x coordinate of the shared point (32 bytes) with a peer's public point; the caller closes it.

        Raises:
            ValueError: it is not an uncompressed point on the curve.
        """
        ...

    def clock(self) -> HardwareClock:
        """The hardware's clock, as it is now."""
        ...

    def random(self, size: int) -> bytes:
        """Random bytes in which the hardware's generator has a part."""
        ...

    def measure_hardware_id(self) -> str | None:
        """The hardware id, asked of the hardware now and of no file (PV-01); None where it cannot be had."""
        ...

    def endorsement(self) -> Endorsement | None:
        """The endorsement key, asked of the hardware now; None where there is none, or its hierarchy has an auth value."""
        ...

    def evidence(self, nonce: bytes) -> Evidence:
        """Has the attestation key say which identity and key-agreement key go with it.

        Args:
            nonce: of the verifier, at most `NONCE_MAX` bytes; it is part of what is signed.

        Raises:
            ValueError: the nonce is too long.
        """
        ...

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Opens what was encrypted to the hardware that has both the endorsement key and the attestation key.

        Args:
            credential_blob: content of a TPM2B_ID_OBJECT (Part 2, 12.4.3).
            encrypted_secret: content of a TPM2B_ENCRYPTED_SECRET (Part 2, 11.4.33).

        Returns:
            The credential, a secret of which no other copy is left: the caller wipes it (`secretmem.wipe_bytes`).

        Raises:
            NoEndorsementKey: there is no endorsement key that could be used.
            ActivationRefused: it was made for another one, or for another attestation key, or has been changed.
        """
        ...

    def status(self) -> BackendStatus:
        """Never raises; what cannot be asked or used is reported as not available, with its state."""
        ...

    def close(self) -> None:
        """Gives sessions and objects back. May be called twice."""
        ...
