"""Decides when to try again after a failure, for every call that leaves the machine (OP-02).

Pure: time and chance are parameters.

Backoff separates attempts, a circuit breaker guards each upstream, and the server may ask for a pause (Retry-After).
"""

from datetime import UTC
from enum import StrEnum

from common.statetable import Table

BASE_S = 2.0
CAP_S = 900.0
LIMIT = 5
COOL_S = 60.0


def delay(attempt: int, chance: float, base_s: float = BASE_S, cap_s: float = CAP_S) -> float:
    """How long to wait before the next attempt: anything from 0 to a bound that doubles each time ("full jitter").

    The whole range is used so that a fleet that failed together does not come back together.

    Args:
        attempt: failures in a row so far.
        chance: evenly distributed in [0, 1).
        base_s: bound without a failure, in seconds; it doubles with each one.
        cap_s: the bound never exceeds it.
    """
    if attempt < 0 or not 0 <= chance < 1:
        raise ValueError("attempt must not be negative, and chance be in [0, 1)")
    # 2**64 times any base is beyond any cap; more would overflow a float.
    return chance * min(cap_s, base_s * 2.0 ** min(attempt, 64))


def retry_after(text: str, now: int, cap_s: float = CAP_S) -> float | None:
    """Seconds that a server asks for by Retry-After: a number or an HTTP-date (RFC 9110 section 10.2.3).

    Args:
        text: the header's value.
        now: trusted time, seconds since 1970 UTC.
        cap_s: more is never waited: a server must not be able to silence an agent.

    Returns:
        0 to `cap_s`, or None if the value is neither.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        return cap_s if len(text) > 9 else min(float(int(text)), cap_s)
    # Our server names seconds; who names a date, a proxy on the way, is rare enough to load its parser then.
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return min(max(moment.timestamp() - now, 0.0), cap_s)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


class BreakerState(StrEnum):
    """State of a circuit breaker."""

    CLOSED = "closed"
    """Calls go out."""
    OPEN = "open"
    """No call goes out: the last ones all failed."""
    HALF_OPEN = "half_open"
    """One call goes out on trial; the others wait for its result."""


class BreakerEvent(StrEnum):
    """What can happen to a circuit breaker."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LIMIT_REACHED = "limit_reached"
    """A failure, the last of as many in a row as open the breaker."""
    COOLED = "cooled"


TRANSITIONS: dict[BreakerState, dict[BreakerEvent, BreakerState]] = {
    BreakerState.CLOSED: {
        BreakerEvent.SUCCEEDED: BreakerState.CLOSED,
        BreakerEvent.FAILED: BreakerState.CLOSED,
        BreakerEvent.LIMIT_REACHED: BreakerState.OPEN,
    },
    # Calls that were under way when it opened report late and change nothing.
    BreakerState.OPEN: {
        BreakerEvent.SUCCEEDED: BreakerState.OPEN,
        BreakerEvent.FAILED: BreakerState.OPEN,
        BreakerEvent.COOLED: BreakerState.HALF_OPEN,
    },
    BreakerState.HALF_OPEN: {
        BreakerEvent.SUCCEEDED: BreakerState.CLOSED,
        BreakerEvent.FAILED: BreakerState.OPEN,
    },
}
next_state = Table("a circuit breaker", TRANSITIONS).step


class CircuitBreaker:
    """Stops calls to an upstream that keeps failing, and lets one through now and then to see.

    All times are seconds of one clock that never goes back.

    Args:
        limit: failures in a row that open it, at least 1.
        cool_s: how long it stays open; also how long a trial may stay without a result before another goes out.

    Attributes:
        state: as the table says.
        failures: in a row.
    """

    def __init__(self, limit: int = LIMIT, cool_s: float = COOL_S) -> None:
        if limit < 1 or cool_s <= 0:
            raise ValueError("limit and cool_s must be positive")
        self._limit = limit
        self._cool_s = cool_s
        self._blocked_until = 0.0
        self.state = BreakerState.CLOSED
        self.failures = 0

    def permits(self, now: float) -> bool:
        """Whether a call may go out. In HALF_OPEN one caller gets a yes and owes a result."""
        if self.state is BreakerState.CLOSED:
            return True
        if now < self._blocked_until:
            return False
        if self.state is BreakerState.OPEN:
            self.state = next_state(self.state, BreakerEvent.COOLED)
        self._blocked_until = now + self._cool_s
        return True

    def try_now(self) -> None:
        """A call goes out whatever the time: somebody asked for it. It is the trial, so its success ends the wait."""
        if self.state is BreakerState.OPEN:
            self.state = next_state(self.state, BreakerEvent.COOLED)

    def succeeded(self) -> None:
        """A call brought an answer, even a refusal: the upstream works."""
        self.state = next_state(self.state, BreakerEvent.SUCCEEDED)
        if self.state is BreakerState.CLOSED:
            self.failures = 0

    def failed(self, now: float, wait_s: float = 0.0) -> None:
        """A call brought no answer.

        Args:
            now: the time.
            wait_s: what the server asked for (`retry_after`), if it is to stay open longer than usual.
        """
        was = self.state
        self.failures += 1
        full = was is BreakerState.CLOSED and self.failures >= self._limit
        self.state = next_state(was, BreakerEvent.LIMIT_REACHED if full else BreakerEvent.FAILED)
        if self.state is BreakerState.OPEN and was is not BreakerState.OPEN:
            self._blocked_until = now + max(self._cool_s, wait_s)
