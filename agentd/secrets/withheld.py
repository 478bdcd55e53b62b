"""Knows which licenses of this agent the server has suspended, or taken away. Performs no IO.

Unlike a revocation either may be taken back, so what counts is what the server said last. It is sealed with the secrets: who
writes to the disk can neither lift a suspension nor make the agent believe that it knows a change which it has not heard of.
"""

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from contracts.contact.licensesync import LicenseChange, Standing

MAX_WITHHELD = 1024
"""Suspended and removed licenses of one agent; where there are more, those that end first are forgotten."""
MAX_GIVEN_BACK = 256
"""Seats that were given back and have not ended; no more are given back, since none of them may be forgotten."""


class Withheld(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The licenses that are refused although their tokens are in order. Times are seconds since 1970 UTC.

    Attributes:
        number: up to which change the agent knows its licenses; 0 before the first.
        suspended: ids of suspended licenses, with the end of each.
        removed: ids of those that belong to the agent no longer, likewise.
        given_back: ids of seats that the agent has given back, likewise. Nothing that the server says brings one back: by then
            another machine may have it.
    """

    number: int = 0
    suspended: dict[str, int] = {}
    removed: dict[str, int] = {}
    given_back: dict[str, int] = {}

    def names(self) -> frozenset[str]:
        """The ids of all of them."""
        return frozenset((*self.suspended, *self.removed, *self.given_back))

    def same(self, other: "Withheld") -> bool:
        """Whether the same licenses are refused for the same reasons."""
        mine, others = ((each.suspended.keys(), each.removed.keys(), each.given_back.keys()) for each in (self, other))
        return mine == others


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
        given_back=present.given_back,
    )


def given_back(present: Withheld, seats: dict[str, int], ended: int) -> Withheld:
    """What is withheld once seats are given back.

    Args:
        present: until now.
        seats: their ids, with the end of each.
        ended: seconds since 1970 UTC; what has ended before is forgotten.
    """
    found = {name: expires for name, expires in {**present.given_back, **seats}.items() if expires > ended}
    return replace(present, given_back=found)
