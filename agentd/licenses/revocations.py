"""The agent's revocation list, as the server last signed it. Pure.

It is replaced by one with a higher number only, or by the same one with a later date; what was revoked before stays revoked.
Past `next_update` it is stale: what that means for licenses is a matter of the configuration.
"""

import msgspec

from contracts.exchange import MAX_REVOKED


class Revocations(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A revocation list. Times are seconds since 1970 UTC.

    Attributes:
        number: grows with each change; 0 before the first list.
        issued_at: when the server signed it.
        next_update: when a newer one should be there; None before the first list.
        revoked: ids of revoked licenses.
    """

    number: int = 0
    issued_at: int = 0
    next_update: int | None = None
    revoked: frozenset[str] = frozenset()

    def stale(self, now: int) -> bool:
        """Whether a newer one should have come."""
        return self.next_update is not None and now >= self.next_update

    def replaces(self, other: "Revocations") -> bool:
        """Whether it may take the other's place."""
        return (self.number, self.next_update or 0) > (other.number, other.next_update or 0) and self.number >= other.number


NONE = Revocations()


def joined(new: Revocations, present: Revocations) -> Revocations:
    """A new list, with what stood on the present one; as much of that as there is room for."""
    gone = sorted(present.revoked - new.revoked)[: max(0, MAX_REVOKED - len(new.revoked))]
    return msgspec.structs.replace(new, number=max(new.number, present.number), revoked=new.revoked.union(gone))


def encode(revocations: Revocations) -> bytes:
    """As it stands in the sealed store."""
    return msgspec.json.encode(revocations)


def decode(data: bytes) -> Revocations:
    """The list in `data`.

    Raises:
        ValueError: it is none.
    """
    try:
        return msgspec.json.decode(data, type=Revocations)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a revocation list: {error}") from None
