"""Knows which licenses of this agent the server has suspended, or taken away. Performs no IO.

Unlike a revocation either may be taken back, so what counts is what the server said last. It is sealed with the secrets: who
writes to the disk can neither lift a suspension nor make the agent believe that it knows a change which it has not heard of.
"""

from collections.abc import Iterable

import msgspec

from contracts.licensesync import LicenseChange, Standing

MAX_WITHHELD = 1024
"""Suspended and removed licenses of one agent; where there are more, those that end first are forgotten."""


class Withheld(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The licenses that are refused although their tokens are in order. Times are seconds since 1970 UTC.

    Attributes:
        number: up to which change the agent knows its licenses; 0 before the first.
        suspended: ids of suspended licenses, with the end of each.
        removed: ids of those that belong to the agent no longer, likewise.
    """

    number: int = 0
    suspended: dict[str, int] = {}
    removed: dict[str, int] = {}

    def names(self) -> frozenset[str]:
        """The ids of all of them."""
        return frozenset((*self.suspended, *self.removed))

    def same(self, other: "Withheld") -> bool:
        """Whether the same licenses are refused for the same reasons."""
        return self.suspended.keys() == other.suspended.keys() and self.removed.keys() == other.removed.keys()


NOTHING_WITHHELD = Withheld()


def applied(present: Withheld, changes: Iterable[LicenseChange], number: int, ended: int) -> Withheld:
    """What is withheld after changes.

    Args:
        present: until now.
        changes: what the server said, in its order.
        number: up to which change the licenses are known then.
        ended: seconds since 1970 UTC; what has ended before is forgotten, since it is refused in any case.
    """
    suspended, removed = dict(present.suspended), dict(present.removed)
    for change in changes:
        suspended.pop(change.license, None)
        removed.pop(change.license, None)
        if change.standing is Standing.SUSPENDED:
            suspended[change.license] = change.expires
        elif change.standing is Standing.REMOVED:
            removed[change.license] = change.expires
    kept = sorted(((*suspended.items(), *removed.items())), key=lambda item: item[1])[-MAX_WITHHELD:]
    names = {name for name, expires in kept if expires > ended}
    return Withheld(
        number=number,
        suspended={name: expires for name, expires in suspended.items() if name in names},
        removed={name: expires for name, expires in removed.items() if name in names},
    )
