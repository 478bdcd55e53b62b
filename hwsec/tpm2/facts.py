"""What a TPM tells about itself: clock, hierarchies, lockout, and who it is. None of it needs an auth value of ours."""

import hashlib
from dataclasses import dataclass
from typing import Any

from ..backend import HardwareClock
from ..errors import BackendUnavailable, OutOfSessions
from .templates import EK_ECC, EK_RSA
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
    """What stands in TPM2_PT_PERMANENT and beside it.

    Attributes:
        hierarchies_open: of `owner`, `endorsement`, `lockout`, those whose auth value is empty.
        in_lockout: whether objects that are not exempt are refused now.
        lockout_counter: failed authorizations that are counted at present.
    """

    hierarchies_open: tuple[str, ...]
    in_lockout: bool
    lockout_counter: int


def read_clock(tpm: Transport) -> HardwareClock:
    """TPM2_ReadClock (Part 3, 29.1)."""
    info = tpm.run(lambda e: e.read_clock())
    clock = info.clockInfo  # lies in info's memory
    return HardwareClock(int(clock.clock), int(clock.resetCount), int(clock.restartCount), bool(clock.safe))


def _property(tpm: Transport, number: int) -> int:
    found: Any = tpm.run(lambda e: e.get_capability(tpm.t.TPM2_CAP.TPM_PROPERTIES, number, 1))[1]
    properties = found.data.tpmProperties  # lies in found's memory
    if len(properties) != 1 or int(properties[0].property) != number:
        raise BackendUnavailable(f"the TPM does not tell its property 0x{number:x}")
    return int(properties[0].value)


def read_permanent(tpm: Transport) -> Permanent:
    """TPM2_GetCapability (Part 3, 30.2) of hierarchies and lockout."""
    bits = _property(tpm, _PT_PERMANENT)
    return Permanent(
        tuple(name for name, bit in _AUTH_SET.items() if not bits & bit),
        bool(bits & _IN_LOCKOUT),
        _property(tpm, _PT_LOCKOUT_COUNTER),
    )


def check_room(tpm: Transport) -> None:
    """Whether the TPM has room for what an unsealing takes beside what is loaded: a session, and an object.

    Raises:
        OutOfSessions: it has not.
    """
    if tpm.tcti.startswith(_MANAGED):
        return
    sessions, objects = _property(tpm, _PT_HR_LOADED_AVAIL), _property(tpm, _PT_HR_TRANSIENT_AVAIL)
    if sessions < 1 or objects < 1:
        raise OutOfSessions(
            f"the TPM has room for {sessions} more sessions and {objects} more objects: other programs hold them; end them, or "
            "use the kernel's resource manager (/dev/tpmrm0)"
        )


def hardware_id(tpm: Transport) -> str | None:
    """Hex SHA-256 over the public area of the endorsement key: the ECC P-256 one, where the TPM has none the RSA one.

    None where the endorsement hierarchy has an auth value, which we do not know.
    """
    for template in (EK_ECC, EK_RSA):
        area = tpm.public_template(template)
        try:
            handle, public, *_ = tpm.run(
                lambda e, area=area: e.create_primary(None, area, primary_handle=tpm.t.ESYS_TR.ENDORSEMENT)  # type: ignore[misc]
            )
        except BackendUnavailable:
            if not tpm.connected:
                raise
            continue
        tpm.flush_quietly(handle)
        return hashlib.sha256(bytes(public.publicArea.marshal())).hexdigest()
    return None
