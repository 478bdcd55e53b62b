"""Asks the updater, which reads the repository and stages packages."""

from pathlib import Path
from typing import Any

from ipc import updatermessages as wire

from .hindrances import MACHINE
from .orderclient import OrderClient, clean
from .sides import Declined, Hindered, Offered, Progress, Seen, Unreachable
from .table import Order

USER = "license-agent-updater"
_AGAIN = frozenset({wire.UpdaterCode.INTERNAL})
"""Reasons that may be gone at the next attempt; all others are properties of directive and package."""
_MAX_PACKAGE_FD_S = 600.0


class UpdaterClient:
    """The updater by its socket.

    Args:
        path: of the socket.
    """

    def __init__(self, path: Path) -> None:
        self._orders = OrderClient(
            path, "updater", USER, wire.encode_updater, wire.from_updater_decoder().decode, wire.UPDATER_MAX_FRAME_BYTES,
            wire.Progress,
        )  # fmt: skip

    async def refresh(self, order: Order, now: int) -> Offered:
        """As `sides.Updater`."""
        asked = wire.Refresh(v=wire.UPDATER_VERSION, id=1, directive=order.directive, key_set=order.key_set, now=now)
        found = _expect(await self._orders.order(asked), wire.Offer)
        return Offered(
            found.product,
            found.version,
            found.build_id,
            found.sha256,
            found.length,
            found.notes,
            found.metadata_expires,
            found.signed_until,
            clean(found.signed_role),
        )

    async def look(self, now: int) -> Seen:
        """As `sides.Updater`."""
        found = _expect(await self._orders.order(wire.Look(v=wire.UPDATER_VERSION, id=1, now=now)), wire.Seen)
        return Seen(found.metadata_expires, found.signed_until, clean(found.signed_role))

    async def stage(self, order: Order, now: int, rate: int | None, progress: Progress) -> None:
        """As `sides.Updater`."""
        asked = wire.Stage(v=wire.UPDATER_VERSION, id=1, directive=order.directive, key_set=order.key_set, now=now, rate=rate)
        found = _expect(await self._orders.order(asked, progress=progress), wire.Staged)
        if found.sha256 != order.sha256:
            raise Declined("digest-differs", "the updater staged another package than the directive names", final=True)

    async def take(self, package: int, now: int, progress: Progress) -> Offered:
        """As `sides.Updater`."""
        asked = wire.TakeBundle(v=wire.UPDATER_VERSION, id=1, directive=None, key_set=None, now=now)
        found = _expect(await self._orders.order(asked, _MAX_PACKAGE_FD_S, progress=progress, descriptor=package), wire.Staged)
        return Offered(found.product, found.version, found.build_id, found.sha256, found.length)

    async def discard(self, keep: tuple[str, ...]) -> None:
        """As `sides.Updater`."""
        _expect(await self._orders.order(wire.Discard(v=wire.UPDATER_VERSION, id=1, keep=keep)), wire.Done)


def _expect(message: Any, kind: type[Any]) -> Any:
    if isinstance(message, wire.Failure):
        text = clean(message.text)
        if message.network or message.code in MACHINE:
            raise Hindered(message.code, text)
        raise Declined(message.code, text, final=message.code not in _AGAIN)
    if not isinstance(message, kind):
        raise Unreachable(f"the updater sent {type(message).__name__} out of turn")
    return message
