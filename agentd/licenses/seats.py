"""Knows the floating licenses of this machine's site, its seats of them, and which of them are wanted. In memory only.

What it knows is kept in the file of the license inventory, and is not trusted: a seat counts by its token, and a seat that was
given back stays refused by the sealed store.
"""

from collections.abc import Container

import msgspec

REFUSED_PAUSE_S = 300
"""A seat that the server has refused is not wanted again for so long: a flood of questions makes no flood of contacts."""
USE_NOTED_S = 600
"""How exactly the file has the last use of a seat."""


class Floating(msgspec.Struct):
    """A floating license, and this machine's seat of it. Times are seconds since 1970 UTC.

    Attributes:
        product: its metadata `product`; None where it names none.
        features: what a seat allows.
        expires: when the license ends.
        idle_s: seconds after which a seat that nobody used is given back.
        offered: the server would give a seat of it, if one is free.
        seat: the id of the seat; empty for none.
        lease_until: the seat is renewed from then on.
        grace_until: the seat's newest token, and every older one, has ended by then.
        used: when a POS application last used the seat, or the seat was taken.
    """

    product: str | None
    features: tuple[str, ...]
    expires: int
    idle_s: int
    offered: bool = True
    seat: str = ""
    lease_until: int = 0
    grace_until: int = 0
    used: int = 0


class SeatPage(msgspec.Struct):
    """What is kept in a file.

    Attributes:
        floating: by id.
        unconfirmed: seats that were given back, and that the server has not confirmed.
    """

    floating: dict[str, Floating] = {}
    unconfirmed: list[str] = []


class Seats:
    """The seats of this machine.

    Attributes:
        page: what is kept.
        dirty: it has changed since it was last kept.
    """

    def __init__(self) -> None:
        self.page = SeatPage()
        self.dirty = False
        self._by_seat: dict[str, Floating] = {}
        self._wanted: set[str] = set()
        self._refused: dict[str, int] = {}

    def load(self, page: SeatPage) -> None:
        """Goes by what was kept."""
        self.page = page
        self._index()

    def replace(self, floating: dict[str, Floating], unconfirmed: list[str]) -> None:
        """Goes by what the server has said."""
        self.page = SeatPage(floating, unconfirmed)
        self.dirty = True
        self._index()

    def _index(self) -> None:
        self._by_seat = {each.seat: each for each in self.page.floating.values() if each.seat}

    # What POS applications do

    @property
    def wanted(self) -> frozenset[str]:
        """Floating licenses of which a seat is wanted, and for which a contact is due."""
        return frozenset(self._wanted)

    def want(self, license_id: str, now: int) -> None:
        """Notes that a POS application needs a seat of a floating license."""
        if license_id in self.page.floating and not self._was_refused(license_id, now):
            self._wanted.add(license_id)

    def _was_refused(self, license_id: str, now: int) -> bool:
        at = self._refused.get(license_id)
        return at is not None and 0 <= now - at < REFUSED_PAUSE_S

    def use(self, license_id: str, now: int) -> None:
        """Notes that a POS application uses a license; nothing if it is no seat."""
        seat = self._by_seat.get(license_id)
        if seat is not None and now - seat.used >= USE_NOTED_S:
            seat.used = now
            self.dirty = True

    # What a contact does

    def heard(self, asked: frozenset[str], refused: frozenset[str], now: int) -> None:
        """Notes which of the licenses that were asked for have no seat for this machine."""
        self._wanted -= asked
        kept = {license_id: at for license_id, at in self._refused.items() if self._was_refused(license_id, now)}
        self._refused = {**kept, **dict.fromkeys(refused, now)}

    def idle(self, now: int) -> list[str]:
        """The seats that nobody has used for so long that they are given back."""
        return [each.seat for each in self.page.floating.values() if each.seat and now - each.used >= each.idle_s]

    def to_renew(self, now: int) -> frozenset[str]:
        """The floating licenses whose seat is renewed now."""
        return frozenset(license_id for license_id, each in self.page.floating.items() if each.seat and now >= each.lease_until)

    def held(self) -> list[str]:
        """The seats of this machine."""
        return list(self._by_seat)

    def without(self, now: int, tokens: Container[str]) -> list[tuple[str, Floating]]:
        """The floating licenses that a seat could be had of, and of which this machine has none that it can use.

        Args:
            now: seconds since 1970 UTC.
            tokens: the licenses of which there is a token here.
        """
        return [
            (license_id, each)
            for license_id, each in self.page.floating.items()
            if each.offered and now < each.expires and not (each.seat in tokens and now < each.grace_until)
        ]

    def next_end(self, now: int) -> int | None:
        """When the next seat ends; None if none does."""
        return min((each.grace_until for each in self._by_seat.values() if each.grace_until > now), default=None)
