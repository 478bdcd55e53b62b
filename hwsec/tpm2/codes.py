"""Maps response codes (Part 2, 6.6.3) to what they mean for us. Nothing here performs IO."""

from ..errors import BackendUnavailable, HardwareReset, LockedOut, OutOfSessions, unsigned

_LAYER_MASK = 0xFF0000
_TCTI_LAYER = 0x0A0000
_TPM_LAYERS = (0x000000, 0x0B0000, 0x0C0000)  # tss2_common.h: the TPM, and the resource managers of kernel and user space

# Format zero: twelve bits.
RC_POLICY = 0x126
RC_PCR_CHANGED = 0x128
RC_AUTH_CONTEXT = 0x145
RC_NV_LOCKED = 0x148
RC_NV_AUTHORIZATION = 0x149
RC_NV_UNINITIALIZED = 0x14A
_RC_LOCKOUT = 0x921
_RC_NO_ROOM = {
    0x901: "contexts are too far apart",
    0x902: "no memory for another object",
    0x903: "no memory for another session",
    0x904: "no memory",
    0x905: "no handle for another session",
    0x906: "no handle for another object",
}
_RC_REFERENCES = range(0x910, 0x91F)  # a handle or session that is no longer there: the TPM has been reset

# Format one: these six bits and bit 7, beside the number of the handle, parameter or session.
RC_ASYMMETRIC = 0x81
RC_VALUE = 0x84
RC_HIERARCHY = 0x85
RC_KEY_SIZE = 0x87
RC_HANDLE = 0x8B
RC_AUTH_FAIL = 0x8E
RC_SCHEME = 0x92
RC_SYMMETRIC = 0x96
RC_POLICY_FAIL = 0x9D
RC_INTEGRITY = 0x9F
RC_BAD_AUTH = 0xA2
RC_CURVE = 0xA6
_FMT1 = 0x080
_FMT1_MASK = 0x0BF
_FMT1_PARAMETER = 0x040
_FMT1_SESSION = 0x800


ANY = range(0x1000)
"""Every code, for commands that are sent in order to be refused."""


class TpmRefusal(BackendUnavailable):
    """The TPM answered with an error code, which nobody signs.

    Attributes:
        code: `RC_...` of this module: without layer, and without the number of what was at fault.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def is_from_tpm(code: int) -> bool:
    """Whether a code of the library was said by the TPM, and not by the way to it."""
    return code & _LAYER_MASK in _TPM_LAYERS


def is_no_answer(code: int) -> bool:
    """Whether a code of the library says that nothing was received, so that there is nothing that could be wrong."""
    return code & _LAYER_MASK == _TCTI_LAYER


def refusal(code: int, text: str) -> BackendUnavailable:
    """The error for a code that the TPM has given, marked as unsigned.

    Args:
        code: as the library has it, with its layer.
        text: the library's words for it.
    """
    return unsigned(_refusal(code & 0xFFF, text))


def _refusal(code: int, text: str) -> BackendUnavailable:
    if code & _FMT1:
        if code & _FMT1_SESSION and not code & _FMT1_PARAMETER and code & _FMT1_MASK == RC_HANDLE:
            return HardwareReset(text)
        return TpmRefusal(code & _FMT1_MASK, f"the TPM refused a command: {text}")
    if code in _RC_REFERENCES:
        return HardwareReset(text)
    if code == _RC_LOCKOUT:
        return LockedOut(
            f"the TPM is locked out after too many wrong auth values ({text}); it recovers with time, or by its lockout auth "
            "(tpm2_dictionarylockout --clear-lockout)"
        )
    if code in _RC_NO_ROOM:
        return OutOfSessions(
            f"the TPM has no room left ({_RC_NO_ROOM[code]}): other programs hold its sessions or objects; end them, or use "
            "the kernel's resource manager (/dev/tpmrm0)"
        )
    return TpmRefusal(code, f"the TPM refused a command: {text}")
