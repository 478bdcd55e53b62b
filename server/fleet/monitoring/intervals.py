"""The intervals in which fleets are observed. Pure."""

INTERVAL_S = 300
"""How long an interval is, in seconds. Each begins at a multiple of it, counted from 1970 UTC."""
SETTLED_S = 90
"""After that time behind its end, what every process has counted in an interval is written, and it is judged."""
KEPT_S = 90 * 86_400
"""How long observations are kept."""


def interval_of(at: float) -> int:
    """The begin of the interval that a time is in; both are seconds since 1970 UTC."""
    return int(at) // INTERVAL_S * INTERVAL_S


def settled_until(now: int) -> int:
    """The end of the last interval that may be judged now; both are seconds since 1970 UTC."""
    return interval_of(now - SETTLED_S)
