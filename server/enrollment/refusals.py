"""Bounds what refused attempts of provisioning write to the audit. Pure.

Anybody can send an attempt that is refused. A few of each address are recorded, and a bounded number of all addresses; the
others are counted, and the next record has their number.
"""

from collections.abc import Callable

from server.base.limits import RECORDED_REFUSAL_RATE, RECORDED_REFUSALS_RATE, address_key, buckets


class RecordedRefusals:
    """Decides which refusals are recorded.

    Args:
        steady: seconds of a clock that never goes back.
    """

    def __init__(self, steady: Callable[[], float]) -> None:
        self._steady = steady
        self._by_address = buckets(RECORDED_REFUSAL_RATE)
        self._all = buckets(RECORDED_REFUSALS_RATE)
        self._unrecorded = 0

    def take(self, address: str) -> int | None:
        """None if this refusal is only counted; else how many were only counted since the last record."""
        now = self._steady()
        if not self._by_address.take(address_key(address), now) or not self._all.take("", now):
            self._unrecorded += 1
            return None
        count, self._unrecorded = self._unrecorded, 0
        return count
