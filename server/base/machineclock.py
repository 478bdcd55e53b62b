"""Reads this machine's clocks: the wall clock, CLOCK_BOOTTIME with its boot, and whether the kernel trusts the first."""

import ctypes
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CREDENTIAL = "boot-id"
"""The same, where the service manager hides /proc/sys and hands the id over instead (systemd.exec(5), LoadCredential=)."""
_TIME_ERROR, _STA_UNSYNC = 5, 0x0040


@dataclass(frozen=True, slots=True)
class Reading:
    """The clocks at one moment.

    Attributes:
        wall: seconds since 1970 UTC.
        boot_s: CLOCK_BOOTTIME; nobody can set it, and it goes on while the machine sleeps.
        boot_id: of the run of the kernel that `boot_s` belongs to; empty if it cannot be read, and then it equals no other.
    """

    wall: float
    boot_s: float
    boot_id: str

    def step_since(self, wall: float, boot_s: float) -> float:
        """Seconds by which the wall clock has jumped against CLOCK_BOOTTIME since both were read before."""
        return self.wall - wall - (self.boot_s - boot_s)


def read_clocks() -> Reading:
    """The clocks now."""
    return Reading(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), _boot_id())


@cache
def _boot_id() -> str:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    handed = None if directory is None else Path(directory, CREDENTIAL)
    try:
        return (handed if handed is not None and handed.exists() else BOOT_ID).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


class _Timex(ctypes.Structure):
    # adjtimex(2). Only `modes` is set and only `status` is read; the rest is room for what the kernel fills in.
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    )


def is_synchronized() -> bool:
    """Whether the kernel calls the wall clock synchronized: a time daemon has set it, and does so again and again.

    A kernel that does not answer (a sandbox that forbids the call) has not said so.
    """
    timex = _Timex(modes=0)
    state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    return 0 <= state != _TIME_ERROR and not timex.status & _STA_UNSYNC
