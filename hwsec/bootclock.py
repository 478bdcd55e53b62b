"""Reads a clock for machines without a TPM: the time since the kernel started."""

import os
import time
import uuid
from pathlib import Path

from .backend import HardwareClock
from .errors import BackendUnavailable

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


CREDENTIAL = "boot-id"
"""The same, where the service manager hides /proc/sys and hands the id over instead (systemd.exec(5), LoadCredential=)."""


def boot_clock(boot_id: str, nanoseconds: int) -> HardwareClock:
    """The clock of one run of the kernel.

    Args:
        boot_id: a UUID that the kernel draws when it starts (random(4)); another one is another reset count.
        nanoseconds: of CLOCK_BOOTTIME, which goes on while the machine sleeps.
    """
    reset_count = int(boot_id.strip().replace("-", "")[:8], 16)
    return HardwareClock(nanoseconds // 1_000_000, reset_count, 0, True)


def read_boot_clock() -> HardwareClock:
    """The clock of this machine, now.

    Raises:
        BackendUnavailable: the kernel does not tell its boot id.
    """
    path = _where()
    try:
        return boot_clock(path.read_text("ascii"), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    except (OSError, ValueError) as error:
        raise BackendUnavailable(f"{path} cannot be read ({error}): is /proc mounted?") from None


def read_boot_id() -> bytes:
    """The id of this run of the kernel, 16 bytes.

    Raises:
        BackendUnavailable: the kernel does not tell it.
    """
    path = _where()
    try:
        return uuid.UUID(path.read_text("ascii").strip()).bytes
    except (OSError, ValueError) as error:
        raise BackendUnavailable(f"{path} cannot be read ({error}): is /proc mounted?") from None


def _where() -> Path:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and (handed := Path(directory, CREDENTIAL)).exists():
        return handed
    return BOOT_ID
