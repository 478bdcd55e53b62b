"""Limits how fast a download goes, and says when it is too slow. Nothing here performs IO; the clock is a parameter."""

from ipc.updatermessages import UpdaterCode

from .failures import UpdateFailed

WINDOW_S = 60.0
"""The time over which the least rate must be reached."""
LEAST_RATE = 1024
"""Bytes a second below which a download is given up: at that rate a server keeps the updater busy, and no more."""
BURST_S = 0.25
"""Seconds of the limited rate that may come at once."""


class Limit:
    """A bandwidth limit: a bucket that may go into debt, since what has arrived cannot be sent back.

    Args:
        rate: bytes a second.
        now: seconds of a clock that never goes back.
    """

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._burst = self._level = rate * BURST_S
        self._at = now

    def spent(self, count: int, now: float) -> float:
        """Takes bytes out, and returns the seconds to wait before the next ones are read."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate) - count
        self._at = now
        return max(0.0, -self._level / self._rate)


class Watch:
    """The least rate, against a server that sends a byte now and then (TUF: slow retrieval attack).

    Args:
        now: seconds of a clock that never goes back.
        rate: bytes a second to which the download is limited; None without a limit.
    """

    __slots__ = ("_began", "_count", "_least")

    def __init__(self, now: float, rate: int | None = None) -> None:
        self._least = (LEAST_RATE if rate is None else min(LEAST_RATE, rate / 2)) * WINDOW_S
        self._began = now
        self._count = 0

    def received(self, count: int, now: float) -> None:
        """Counts bytes.

        Raises:
            UpdateFailed: SLOW, if the window is over and has brought too little.
        """
        self._count += count
        if now - self._began < WINDOW_S:
            return
        if self._count < self._least:
            raise UpdateFailed(UpdaterCode.SLOW, f"the repository sent {self._count} bytes in {WINDOW_S:g} s; that is too slow")
        self._began, self._count = now, 0

    def paused(self, seconds: float) -> None:
        """Leaves out a time in which we read nothing."""
        self._began += seconds

    def left(self, now: float) -> float:
        """Seconds until the window is over: how long the next byte may take at most."""
        return max(0.0, self._began + WINDOW_S - now)
