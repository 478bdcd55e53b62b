"""Reads what a TPM reports about itself: clock, hierarchies, lockout, room. None of it needs an auth value of ours.

The session authenticates all of it (`Transport.witness`), so that nothing here can be made up on the bus.
"""

from dataclasses import dataclass
from typing import Any

from ..backend import HardwareClock
from ..errors import BackendUnavailable, HwsecError, LockedOut, OutOfSessions, unsigned
from .codes import RC_AUTH_CONTEXT, TpmRefusal
from .transport import Transport

# Part 2, 6.13
_PT_PERMANENT = 0x200
_PT_HR_LOADED_AVAIL = 0x204
_PT_HR_TRANSIENT_AVAIL = 0x207
_PT_LOCKOUT_COUNTER = 0x20E
# A resource manager makes room by swapping, so that what the TPM says of itself is no limit.
_MANAGED = ("device:/dev/tpmrm", "tabrmd")
# Part 2, 8.6: TPMA_PERMANENT
_AUTH_SET = {"owner": 1 << 0, "endorsement": 1 << 1, "lockout": 1 << 2}
_IN_LOCKOUT = 1 << 9


@dataclass(frozen=True, slots=True)
class Permanent:
    """The bits of TPM2_PT_PERMANENT, and more.

    Attributes:
        hierarchies_open: of `owner`, `endorsement`, `lockout`, those whose auth value is empty.
        in_lockout: whether objects that are not exempt are refused now.
        lockout_counter: failed authorizations that are counted at present.
    """

    hierarchies_open: tuple[str, ...]
    in_lockout: bool
    lockout_counter: int


def read_clock(tpm: Transport) -> HardwareClock:
    """TPM2_ReadClock (Part 3, 29.1).

    Raises:
        BackendUnavailable: this TPM does not authenticate its clock.
    """
    try:
        info = tpm.run(lambda e: e.read_clock(session1=tpm.witness), (RC_AUTH_CONTEXT,))
    except TpmRefusal as reason:
        if reason.code != RC_AUTH_CONTEXT:
            raise
        raise unsigned(TpmRefusal(reason.code, "this TPM does not authenticate its clock")) from None
    clock = info.clockInfo  # lies in info's memory
    return HardwareClock(int(clock.clock), int(clock.resetCount), int(clock.restartCount), bool(clock.safe))


def read_property(tpm: Transport, number: int) -> int:
    """One of the TPM's properties (TPM2_GetCapability: Part 3, 30.2), by its number (Part 2, 6.13).

    Raises:
        BackendUnavailable: this TPM does not tell it.
    """
    found: Any = tpm.run(lambda e: e.get_capability(tpm.t.TPM2_CAP.TPM_PROPERTIES, number, 1, session1=tpm.witness))[1]
    properties = found.data.tpmProperties  # lies in found's memory
    if len(properties) != 1 or int(properties[0].property) != number:
        raise BackendUnavailable(f"the TPM does not tell its property 0x{number:x}")
    return int(properties[0].value)


def read_permanent(tpm: Transport) -> Permanent:
    """TPM2_GetCapability (Part 3, 30.2) of hierarchies and lockout."""
    bits = read_property(tpm, _PT_PERMANENT)
    return Permanent(
        tuple(name for name, bit in _AUTH_SET.items() if not bits & bit),
        bool(bits & _IN_LOCKOUT),
        read_property(tpm, _PT_LOCKOUT_COUNTER),
    )


def check_room(tpm: Transport) -> None:
    """Whether the TPM has room for what an unsealing takes beside what is loaded: a session, and an object.

    Raises:
        OutOfSessions: it has not.
    """
    if tpm.tcti.startswith(_MANAGED):
        return
    sessions, objects = read_property(tpm, _PT_HR_LOADED_AVAIL), read_property(tpm, _PT_HR_TRANSIENT_AVAIL)
    if sessions < 1 or objects < 1:
        raise OutOfSessions(
            f"the TPM has room for {sessions} more sessions and {objects} more objects: other programs hold them; end them, or "
            "use the kernel's resource manager (/dev/tpmrm0)"
        )


def confirms(tpm: Transport, error: LockedOut | OutOfSessions) -> bool:
    """Whether the TPM authenticates what a response code has said without a signature."""
    if not tpm.connected:
        return False
    try:
        if isinstance(error, LockedOut):
            return read_permanent(tpm).in_lockout
        check_room(tpm)
    except OutOfSessions:
        return True
    except HwsecError:
        return False
    return False
