"""Says what the rollouts have for a device, and tells them what it reports: all that DDI knows of rollouts."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sqlalchemy.orm import Session

from server.registry.later import Records


class Report(StrEnum):
    """What becomes of an order."""

    INSTALLED = "installed"
    PROVED = "proved"
    FAILED = "failed"
    REFUSED = "refused"
    """No client of DDI installs such a package."""
    STOPPED = "stopped"
    """It was taken back before the device had installed it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a rollout has for a device.

    Attributes:
        rollout_id: of the rollout.
        fleet_id: of the rollout's fleet.
        path: of the package in the repository.
        may_begin: whether the device may begin at this moment: its window is open, and the rollout is not paused.
    """

    rollout_id: str
    fleet_id: str
    path: str
    may_begin: bool = True


@dataclass(frozen=True, slots=True)
class Standing:
    """How an order stands that a device has.

    Attributes:
        wanted: whether the rollout still wants it done.
        may_begin: as `Order.may_begin`.
    """

    wanted: bool
    may_begin: bool


class Queue(Protocol):
    """The rollouts, as DDI asks them."""

    def pending(self, session: Session, device_id: str) -> bool:
        """Whether there may be something for a device that has no action. Reads only, and little: each poll asks."""
        ...

    def open_for(self, session: Session, device_id: str, now: int, records: Records) -> Order | None:
        """What a device is ordered to install, in a writing transaction that has locked the device.

        The caller writes the records last: who holds the counter of the audit log must wait for nothing else.
        """
        ...

    def standing(self, session: Session, rollout_id: str, device_id: str, now: int) -> Standing:
        """How an order stands that the device has. Reads only."""
        ...

    def report(self, session: Session, rollout_id: str, device_id: str, what: Report, detail: str, now: int) -> None:
        """Notes what a device has reported."""
        ...
