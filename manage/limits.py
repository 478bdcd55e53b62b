"""Says how often a certificate, and all of them, may ask. Nothing here performs IO.

A certificate's own limit comes first, so that one that asks too often uses up nothing of what the others share.
"""

from dataclasses import dataclass

from common.tokenbucket import BoundedBuckets

MAX_KEYS = 256
"""Certificates whose limits are remembered."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may be done.

    Attributes:
        per_s: sustained, a second.
        burst: at once.
    """

    per_s: float
    burst: int


EACH = Rate(10, 40)
"""Requests of one certificate."""
ALL = Rate(50, 200)
"""Requests of all."""
FAILED = Rate(1 / 20, 5)
"""Signed requests of one certificate that the agent refused: for the signature, the role, a rule or the form. The agent answers
its user late after failures, and others use this interface as the same user."""


class Limits:
    """The limits of everybody who asks."""

    def __init__(self) -> None:
        self._each = BoundedBuckets(EACH.per_s, EACH.burst, MAX_KEYS)
        self._all = BoundedBuckets(ALL.per_s, ALL.burst, 1)
        self._failed = BoundedBuckets(FAILED.per_s, FAILED.burst, MAX_KEYS)

    def wait(self, certificate: str, now: float) -> int:
        """Counts a request; returns the seconds after which it may be asked, 0 if now.

        Args:
            certificate: SHA-256 of the TLS certificate.
            now: seconds of a clock that never goes back.
        """
        if not self._each.take(certificate, now):
            return max(1, self._each.wait(certificate, now))
        if not self._all.take("", now):
            return max(1, self._all.wait("", now))
        return 0

    def wait_to_sign(self, certificate: str, now: float) -> int:
        """Seconds after which this certificate may send a signature, 0 if now."""
        return self._failed.wait(certificate, now)

    def failed(self, certificate: str, now: float) -> None:
        """Counts a signed request that the agent refused."""
        self._failed.take(certificate, now)
