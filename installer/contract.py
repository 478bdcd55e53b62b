"""The contract of every backend; tests/installer/test_backends.py holds each to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Literal, Protocol

Place = Literal["a", "b"]
"""Where a version can be."""


class BackendRefused(Exception):
    """The machine or the package is not as the backend needs it. Nothing that runs has changed.

    Attributes:
        code: the reason, for the core: "bundle-refused", "no-room" or "machine"; of the agent's own package also "busy",
            "not-installed" and "rescued".
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Content:
    """What a package or a place says of itself."""

    product: str
    version: str
    build_id: str


class Backend(Protocol):
    """Versions of one product in two places, of which at most one is active.

    A kill between any two steps of any method leaves the active version complete; the method can then be called again.
    All of them raise `OSError` where the disk fails.

    Attributes:
        restarts: `activate` restarts the product itself.
    """

    restarts: ClassVar[bool]

    def active(self) -> Place | None:
        """Returns the place whose version starts the next time; None before the first one.

        Raises:
            BackendRefused: that cannot be said, because somebody changed the machine.
        """

    def content(self, place: Place) -> Content | None:
        """Returns what a place says of itself, for a version that was there before the installer; None if it says nothing."""

    def stage(self, place: Place, package: BinaryIO, expected: Content, trace: Callable[[str], None]) -> None:
        """Puts a package in a place that is not active, instead of what is there. When this returns, it is on the disk.

        Args:
            place: not the active one.
            package: whose digest was checked, and which only root can change.
            expected: what the signed target says of it.
            trace: called after each write.

        Raises:
            BackendRefused: the package may not be installed, there is no room, or the place is active.
        """

    def activate(self, place: Place, trace: Callable[[str], None]) -> None:
        """Makes the version of a place the one that starts the next time, durably and in one step.

        Raises:
            BackendRefused: the place is empty, or the machine is not as it must be.
        """

    def returned(self, place: Place) -> str:
        """Says why the version of a place was taken back without an order; empty if it was not."""

    def keep(self, place: Place, trace: Callable[[str], None]) -> None:
        """Ends the trial of the active version, right before it is recorded as the good one. May be repeated.

        Raises:
            BackendRefused: somebody has begun to end it otherwise.
        """

    def deactivate(self, trace: Callable[[str], None]) -> None:
        """Makes no version the active one: the end of a first installation that failed."""
