"""Works out what the machine knows of the time without a network: the last server-signed time and what has passed since. No IO.

Two counters say what has passed: the TPM's clock, which goes on after a restart of the machine, and CLOCK_BOOTTIME, which
starts again at zero. Each gives a lower bound, and the higher one counts. So a dead battery, a cleared TPM or a TPM clock that
may have shown more before (`safe` false) only weakens the floor.
"""

from dataclasses import dataclass

import msgspec

TOLERANCE_S = 300
"""A wall clock that is off by no more is not suspect."""
DRIFT_PPM = 500
"""How fast or slow a machine's counters may run: crystal oscillators stay within 100, badly calibrated TSCs within 500."""


class Reading(msgspec.Struct, frozen=True):
    """One counter.

    Attributes:
        milliseconds: what it shows.
        epoch: changes when the machine, or the TPM, is started again.
    """

    milliseconds: int
    epoch: int


class TimeAnchor(msgspec.Struct, frozen=True):
    """A server-signed time, and what the counters showed when it came.

    Attributes:
        signed: seconds since 1970 UTC.
        fresh: whether it had just been signed when it came, so that it is more than a lower bound: the server answered a
            challenge, or the machine's own clock agreed.
        boot: CLOCK_BOOTTIME.
        tpm: the TPM's clock; None without a TPM that answered.
    """

    signed: int
    fresh: bool
    boot: Reading
    tpm: Reading | None = None


@dataclass(frozen=True, slots=True)
class Since:
    """What is known of the time that has passed since an anchor.

    Attributes:
        least_ms: at least so many milliseconds.
        running: whether the machine has not been off in between, so that it was not much more either.
    """

    least_ms: int
    running: bool


def since(anchor: TimeAnchor, boot: Reading, tpm: Reading | None) -> Since:
    """What has passed since an anchor, by the counters as they stand now."""
    running = boot.epoch == anchor.boot.epoch and boot.milliseconds >= anchor.boot.milliseconds
    # After another start, at least the time since that start has passed.
    least = boot.milliseconds - anchor.boot.milliseconds if running else boot.milliseconds
    if tpm is not None and anchor.tpm is not None and not running:
        # A TPM that shows less than then has been cleared, and has counted from zero since.
        counted = tpm.milliseconds - anchor.tpm.milliseconds
        least = max(least, counted if counted >= 0 else tpm.milliseconds)
    return Since(max(least, 0), running)


def tolerance(seconds: float) -> float:
    """How far two clocks may be apart after so many seconds without being suspect."""
    return TOLERANCE_S + seconds * DRIFT_PPM / 1e6
