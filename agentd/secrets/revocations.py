"""Decides which revocation list the agent goes by. Performs no IO.

A list is replaced only by one with a higher number, or by the same one with a later date, and a license once revoked stays
revoked. Past `next_update` a list is stale; the configuration says what that means for licenses.
"""

import msgspec

from contracts.exchange import MAX_REVOKED


class Revocations(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A revocation list as the server last signed it. Times are seconds since 1970 UTC.

    Attributes:
        number: grows with each change; 0 before the first list.
        issued_at: when the server signed it.
        next_update: when a newer one should have come; None before the first list.
        revoked: ids of revoked licenses.
    """

    number: int = 0
    issued_at: int = 0
    next_update: int | None = None
    revoked: frozenset[str] = frozenset()

    def stale(self, now: int) -> bool:
        """Whether a newer list should have come."""
        return self.next_update is not None and now >= self.next_update

    def old(self, now: int) -> bool:
        """Whether half of the time until the next update has passed, so that the agent asks for a newer list."""
        until = self.next_update
        return until is not None and now >= until - (until - self.issued_at) // 2

    def from_later_than(self, ceiling: int | None) -> bool:
        """Whether a wrong clock has dated it: it was signed later than the latest time that it may be, where that is known."""
        return ceiling is not None and self.issued_at > ceiling

    def replaces(self, other: "Revocations") -> bool:
        """Whether this list may take the place of the other."""
        return (self.number, self.next_update or 0) > (other.number, other.next_update or 0) and self.number >= other.number


NO_REVOCATIONS = Revocations()


def joined(new: Revocations, present: Revocations) -> Revocations:
    """A new list with the licenses of the present one added, as many as there is room for."""
    gone = sorted(present.revoked - new.revoked)[: max(0, MAX_REVOKED - len(new.revoked))]
    return msgspec.structs.replace(new, number=max(new.number, present.number), revoked=new.revoked.union(gone))
