"""Defines the errors of the protection of secrets. Missing hardware is an error when it is used, not when it is imported.

Each error names the state of the hardware that it shows, so that a metric or a status can be made from it.
"""

from enum import StrEnum
from typing import ClassVar, TypeVar


class BackendState(StrEnum):
    """How the protecting hardware is. The words are those of metrics and of the status command."""

    AVAILABLE = "available"
    ABSENT = "absent"
    LOCKED_OUT = "locked_out"
    HUNG = "hung"
    PCR_MISMATCH = "pcr_mismatch"
    PCR_UNINITIALIZED = "pcr_uninitialized"
    NV_GONE = "nv_gone"
    FOREIGN = "foreign"
    OUT_OF_SESSIONS = "out_of_sessions"
    UNRELIABLE = "unreliable"


class HwsecError(Exception):
    """Base of this package's errors. The text says what was wrong, where, and what to do next.

    Attributes:
        state: what the error says of the hardware; AVAILABLE where the fault is not the hardware's.
        unsigned: whether it rests on an answer that the hardware does not authenticate, so that anybody on the bus could have
            made it up. `hwsec.repetition` decides when such an error is believed.
    """

    state: ClassVar[BackendState] = BackendState.AVAILABLE
    unsigned: bool = False


E = TypeVar("E", bound=HwsecError)


def unsigned(error: E) -> E:
    """The error, marked as one that rests on an answer which nobody signs."""
    error.unsigned = True
    return error


class BackendUnavailable(HwsecError):
    """The TPM (or the library that speaks to it) is absent, does not answer, or refuses."""

    state = BackendState.ABSENT


class BackendHung(BackendUnavailable):
    """The TPM has not answered within its deadline, more often than threads are replaced."""

    state = BackendState.HUNG


class HardwareReset(BackendUnavailable):
    """The TPM has forgotten our sessions and objects: it was reset while the machine slept, or somebody flushed them.

    The connection has been closed, and the next call makes a new one. A backend repeats the call by itself; this error comes
    out of it only if somebody goes on flushing.
    """

    state = BackendState.ABSENT


class UnreliableHardware(BackendUnavailable):
    """The TPM's answers do not fit: wrong HMACs, nonces or names, or response codes that contradict each other.

    The bus is disturbed, or somebody changes what passes on it. Nothing is concluded from such answers.
    """

    state = BackendState.UNRELIABLE


class LockedOut(BackendUnavailable):
    """The TPM refuses for too many wrong auth values (Part 1, 19.8). It recovers with time, or by its lockout auth."""

    state = BackendState.LOCKED_OUT


class OutOfSessions(BackendUnavailable):
    """The TPM has no room for one more session or object: other programs hold them, or have leaked them."""

    state = BackendState.OUT_OF_SESSIONS


class NotEnrolled(HwsecError):
    """There is no sealed key yet: this agent has not been initialized."""


class OldFormat(NotEnrolled):
    """What is there was written by an earlier version, and cannot be read by this one."""


class AlreadyEnrolled(HwsecError):
    """There is a sealed key already; initializing again would destroy what it protects."""


class AuditEmpty(HwsecError):
    """Nothing has been extended into the audit value yet, so there is nothing to certify."""


class NoEndorsementKey(HwsecError):
    """There is no endorsement key: the machine has no TPM, or that key's hierarchy has an auth value."""


class ActivationRefused(HwsecError):
    """The TPM does not open a credential: it is for another TPM or another attestation key, or was changed on its way."""


class BlobCorrupt(HwsecError):
    """A sealed blob does not authenticate: it was changed, has another name, or another key sealed it."""


class ForeignHardware(HwsecError):
    """The sealed objects belong to another TPM, or to this one before it was cleared."""

    state = BackendState.FOREIGN


class NvGone(ForeignHardware):
    """What the hardware keeps for us is gone: the TPM was cleared, or its owner deleted our indices."""

    state = BackendState.NV_GONE


class PcrMismatch(HwsecError):
    """The machine is in a state that no valid signed policy describes."""

    state = BackendState.PCR_MISMATCH


class PcrUninitialized(HwsecError):
    """A PCR that the key is to be bound to has never been extended, so that it would prove nothing."""

    state = BackendState.PCR_UNINITIALIZED


class StoreError(HwsecError):
    """Base of the errors of the sealed store."""


class StoreMissing(StoreError):
    """No copy of the store is there."""


class StoreCorrupt(StoreError):
    """No copy of the store is whole, or none authenticates."""


class StoreTooLarge(StoreError):
    """What is to be kept does not fit into a store; nothing has changed."""


class StoreRollback(StoreError):
    """What is there is authentic but older than what the anchor names: an older copy was put back."""


class SecretMemoryError(HwsecError):
    """The kernel gave no protected memory."""
