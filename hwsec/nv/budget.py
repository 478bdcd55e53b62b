"""Limits how often NV memory is written, as a token bucket. Nothing here performs IO; time is a parameter.

NV cells of a TPM wear out; chips are sold for about 100,000 writes of one index. 48 writes a day reach that in 5 years and
more, and a burst lets an installation or a recovery through. The bucket lives as long as the process: a restart fills it.
"""

WRITES_PER_DAY = 48
BURST = 24
_DAY_S = 86_400.0


class NvBudget:
    """Counts what may still be written. It refuses nothing: the caller of a write decides.

    Args:
        now: seconds of a clock that never goes back.
        per_day: writes that come free in a day.
        burst: the most that is saved up.
    """

    def __init__(self, now: float, per_day: int = WRITES_PER_DAY, burst: int = BURST) -> None:
        self._rate = per_day / _DAY_S
        self._burst = burst
        self._level = float(burst)
        self._then = now

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._then)
        self._level = min(float(self._burst), self._level + passed * self._rate)
        self._then = max(now, self._then)

    def spend(self, now: float, writes: int = 1) -> None:
        """Counts writes that were made; more than the budget allows become a debt."""
        self._fill(now)
        self._level -= writes

    def left(self, now: float) -> int:
        """Writes that fit the budget now; 0 while there is a debt."""
        self._fill(now)
        # A hair's breadth more: the sum of many small times must not lose a write to rounding.
        return max(0, int(self._level + 1e-9))
