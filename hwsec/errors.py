"""What can go wrong with the protection of secrets. Missing hardware is an error when it is used, not when it is imported."""


class HwsecError(Exception):
    """Base of this package's errors. The text says what was wrong, where, and what to do next."""


class BackendUnavailable(HwsecError):
    """The TPM (or the library that speaks to it) is absent or does not answer."""


class BackendHung(BackendUnavailable):
    """The TPM has not answered within its deadline, more often than threads are replaced."""


class NotEnrolled(HwsecError):
    """There is no sealed key yet: this agent has not been initialized."""


class AlreadyEnrolled(HwsecError):
    """There is a sealed key already; initializing again would destroy what it protects."""


class ForeignHardware(HwsecError):
    """The sealed objects belong to another TPM, or to this one before it was cleared."""


class StoreError(HwsecError):
    """Base of the errors of the sealed store."""


class StoreMissing(StoreError):
    """No copy of the store is there."""


class StoreCorrupt(StoreError):
    """No copy of the store is whole, or none authenticates."""


class StoreRollback(StoreError):
    """What is there is authentic but older than what the anchor names: an older copy was put back."""


class SecretMemoryError(HwsecError):
    """The kernel gave no protected memory."""
