"""Says how long a user waits after requests that were refused for their certificate. Nothing here performs IO.

Nobody is locked out: the wait ends after seconds, grows with the user's own failures only, and no certificate is its key, so
that a stranger who shows somebody's certificate delays nobody but their own UID.
"""

from ipc.bounds import ADMIN_SETBACK_S

FIRST_S = 0.25
FORGOTTEN_S = 60.0
"""After so long without a failure, the next one is the first."""


class Setbacks:
    """The failures of each user."""

    def __init__(self) -> None:
        self._failed: dict[int, tuple[int, float]] = {}

    def failed(self, uid: int, now: float) -> None:
        """Counts a failure.

        Args:
            uid: whose.
            now: monotonic seconds.
        """
        count, last = self._failed.get(uid, (0, now))
        self._failed[uid] = (1 if now - last >= FORGOTTEN_S else count + 1, now)

    def wait(self, uid: int, now: float) -> float:
        """Seconds that the user's next signature, and the reply to the one that failed, wait."""
        count, last = self._failed.get(uid, (0, now))
        if not count:
            return 0.0
        delay = min(FIRST_S * float(1 << min(count - 1, 10)), float(ADMIN_SETBACK_S))
        return max(0.0, last + delay - now)

    def tidy(self, now: float) -> None:
        """Frees memory that is no longer needed."""
        self._failed = {uid: entry for uid, entry in self._failed.items() if now - entry[1] < FORGOTTEN_S}
