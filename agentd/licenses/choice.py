"""Chooses the license that answers `require`, and cuts the list of licenses into pages. Pure.

A license that allows the feature answers: a valid one that ends last, or else one whose reason is nearest to valid. A license
that the agent cannot open might allow anything, so it answers where none that it can open does.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec

from ipc.answers import NEAREST_FIRST, LicenseReason

_RANK = {reason: rank for rank, reason in enumerate(NEAREST_FIRST)}


class Held(msgspec.Struct, frozen=True):
    """A license that this machine holds, judged at a time. Times are seconds since 1970 UTC.

    Attributes:
        license_id: the license.
        reason: whether it may be used, or why not.
        opened: the agent could read what is licensed; without it there are no dates, features, metadata and product.
        begins_at: `nbf`.
        expires_at: `exp`.
        features: what is licensed, also where it is not valid.
        metadata: what the issuer attached, also where it is not valid.
        secret_version: that its newest token was made with.
        secret_state: of that version.
    """

    license_id: str
    reason: LicenseReason
    opened: bool = False
    begins_at: int | None = None
    expires_at: int | None = None
    features: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    secret_version: int | None = None
    secret_state: str | None = None

    @property
    def valid(self) -> bool:
        """Whether it may be used now."""
        return self.reason is LicenseReason.OK

    @property
    def product(self) -> str | None:
        """What it is for: its metadata `product`."""
        return self.metadata.get("product") or None

    def of(self, products: Collection[str] | None) -> bool:
        """Whether it is for one of these products; None is any license."""
        return products is None or self.product in products


def _order(held: Held) -> tuple[int, int, str]:
    return _RANK[held.reason], -(held.expires_at or 0), held.license_id


class HeldLicenses:
    """The licenses of the machine at a time.

    Args:
        held: each license once.
    """

    def __init__(self, held: Iterable[Held]) -> None:
        ordered = sorted(held, key=_order)
        self._by_feature: dict[str, list[Held]] = {}
        for license in ordered:
            for feature in set(license.features):
                self._by_feature.setdefault(feature, []).append(license)
        self._unopened = [license for license in ordered if not license.opened]
        self._by_id = sorted(ordered, key=lambda license: license.license_id)
        self._ids = [license.license_id for license in self._by_id]

    def __len__(self) -> int:
        return len(self._by_id)

    def choose(self, feature: str, product: str | None, allowed: Collection[str] | None = None) -> Held | None:
        """The license that answers `require`; None where none does.

        Args:
            feature: that it should allow.
            product: that it should be for; None for any.
            allowed: the products that the caller may know of; None for all licenses.
        """
        for license in self._by_feature.get(feature, ()):
            if license.of(allowed) and (product is None or license.product == product):
                return license
        return self._unopened[0] if self._unopened else None

    def after(self, license_id: str, allowed: Collection[str] | None = None) -> Iterator[Held]:
        """The licenses whose ids come after this one, in the order of their ids.

        Args:
            license_id: any text; "" for all licenses.
            allowed: the products that the caller may know of; None for all licenses.
        """
        for place in range(bisect_right(self._ids, license_id), len(self._by_id)):
            if self._by_id[place].of(allowed):
                yield self._by_id[place]


def page(licenses: Iterable[Held], size_of: Callable[[Held], int], most: int, room: int) -> tuple[list[Held], bool]:
    """The licenses of one page, and whether others follow.

    Args:
        licenses: in their order.
        size_of: bytes that one takes.
        most: licenses in a page.
        room: bytes in a page; the first license always finds room.
    """
    found: list[Held] = []
    for license in licenses:
        room -= size_of(license)
        if len(found) == most or (found and room < 0):
            return found, True
        found.append(license)
    return found, False
