"""Asks the installer, which judges a staged package with root's own trust and installs it."""

from pathlib import Path
from typing import Any

import msgspec

from ipc import installermessages as wire

from .hindrances import BUSY, MACHINE, STALE
from .orderclient import OrderClient, clean
from .sides import Declined, Hindered, Progress, Proof, Unreachable
from .table import Installed

USER = "root"
_ON_TRIAL = ("switched", "proving")
RESTART_S, PROOF_S = 300.0, 600.0
"""How long a restart of the product, and its health command, may take."""
WITHDRAWAL_S = 30.0
"""How long the installer may take to remember a withdrawal. A contact waits for it, and the next one hands it over again."""
LOOK_S = 200.0
"""How long a look at all products may take: longer than the installer waits for a RAUC that says nothing."""
SWITCH_S = 4200.0
"""How long a switch may take: a whole system is installed then, by RAUC. Longer than the installer waits for that."""


class InstallerClient:
    """The installer by its socket.

    Args:
        path: of the socket.
    """

    def __init__(self, path: Path) -> None:
        self._orders = OrderClient(
            path, "installer", USER, wire.encode_installer, wire.from_installer_decoder().decode,
            wire.INSTALLER_MAX_FRAME_BYTES, wire.Progress,
        )  # fmt: skip

    async def products(self) -> dict[str, Installed]:
        """As `sides.Installer`."""
        asked = wire.Products(v=wire.INSTALLER_VERSION, id=1)
        found = _expect(await self._orders.order(asked, LOOK_S), wire.ProductList)
        return {each.product: _installed(each) for each in found.products}

    async def prepare(self, product: str, sha256: str, progress: Progress) -> None:
        """As `sides.Installer`."""
        asked = wire.Prepare(v=wire.INSTALLER_VERSION, id=1, product=product, sha256=sha256)
        _expect(await self._orders.order(asked, progress=progress), wire.Prepared)

    async def switch(self, product: str, sha256: str) -> None:
        """As `sides.Installer`. That the product was not restarted is for the trial to find out."""
        asked = wire.Switch(v=wire.INSTALLER_VERSION, id=1, product=product, sha256=sha256)
        _expect(await self._orders.order(asked, SWITCH_S), wire.Switched)

    async def prove(self, product: str) -> Proof:
        """As `sides.Installer`."""
        found = _expect(
            await self._orders.order(wire.Prove(v=wire.INSTALLER_VERSION, id=1, product=product), PROOF_S), wire.Proved
        )
        bad = [f"{check.name}: {clean(check.text)}" for check in found.checks if not check.ok]
        return Proof(found.ok and bool(found.checks) and not bad, "; ".join(bad)[:500])

    async def commit(self, product: str) -> None:
        """As `sides.Installer`."""
        _expect(await self._orders.order(wire.Commit(v=wire.INSTALLER_VERSION, id=1, product=product)), wire.Committed)

    async def roll_back(self, product: str, reason: str) -> str:
        """As `sides.Installer`."""
        asked = wire.RollBack(v=wire.INSTALLER_VERSION, id=1, product=product, reason=clean(reason))
        return clean(_expect(await self._orders.order(asked, RESTART_S), wire.RolledBack).config)

    async def withdraw(self, directive: str, key_set: str) -> None:
        """As `sides.Installer`."""
        asked = wire.Withdraw(v=wire.INSTALLER_VERSION, id=1, directive=directive, key_set=key_set)
        _expect(await self._orders.order(asked, WITHDRAWAL_S), wire.Withdrawn)


def _installed(found: wire.ProductState) -> Installed:
    in_trial = found.state in _ON_TRIAL
    active = found.pending if in_trial else found.running
    before = found.running if in_trial else found.previous
    problem = found.problem
    return Installed(
        version="" if active is None else active.version,
        build_id="" if active is None else active.build_id,
        in_trial=in_trial,
        begun=found.state != "idle",
        previous="" if before is None else before.version,
        code="" if isinstance(problem, msgspec.UnsetType) else clean(problem.code),
        problem="" if isinstance(problem, msgspec.UnsetType) else clean(problem.text),
    )


def _expect(message: Any, kind: type[Any]) -> Any:
    if isinstance(message, wire.Refused) and message.code == BUSY:
        raise Hindered(BUSY, f"the installer waits: {clean(message.text)}")
    if isinstance(message, wire.Refused):
        text = clean(message.text)
        if message.code in MACHINE:
            raise Hindered(message.code, text)
        raise Declined(message.code, text, counted=message.code not in STALE)
    if not isinstance(message, kind):
        raise Unreachable(f"the installer sent {type(message).__name__} out of turn")
    return message
