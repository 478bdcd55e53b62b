"""Says to the kernel that the clock is synchronized, as a time service does: the guest's network reaches no time server."""

import ctypes
import os
import sys

ADJ_MAXERROR, ADJ_ESTERROR, ADJ_STATUS, STA_PLL = 0x4, 0x8, 0x10, 0x1


class Timex(ctypes.Structure):
    """The beginning of struct timex (adjtimex(2)), with room for the rest."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    ]


wanted = Timex(modes=ADJ_STATUS | ADJ_MAXERROR | ADJ_ESTERROR, status=STA_PLL)
libc = ctypes.CDLL(None, use_errno=True)
if libc.adjtimex(ctypes.byref(wanted)) < 0:
    sys.exit(f"adjtimex: {os.strerror(ctypes.get_errno())}")
