"""Declares what the runner needs of the updater and of the installer, which are asked by sockets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .hindrances import UNREACHABLE
from .table import Installed, Order

Progress = Callable[[int, int], None]
"""Called with the bytes that are done, and those in all."""


class Hindered(Exception):
    """Something that is not the package's keeps the effect from happening: no failed attempt; it is tried again.

    Attributes:
        code: as `hindrances.Hindrance` has it.
        text: for people.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class Unreachable(Hindered):
    """Updater, installer, link or repository cannot be reached."""

    def __init__(self, text: str) -> None:
        super().__init__(UNREACHABLE, text)


class Declined(Exception):
    """The updater or the installer does not do it, and says why.

    Attributes:
        code: of its protocol.
        text: for people.
        counted: whether it is a failed attempt.
        final: whether asking again is of no use.
    """

    def __init__(self, code: str, text: str, *, counted: bool = True, final: bool = False) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text, self.counted, self.final = code, text, counted, final


@dataclass(frozen=True, slots=True)
class Offered:
    """What the repository holds for a directive, or what a package holds.

    Attributes:
        product, version, build_id, sha256: what.
        length: bytes.
        notes: release notes.
        metadata_expires: when the repository's metadata ends, seconds since 1970 UTC; 0 for a package.
        signed_until, signed_role: when the first role of the metadata ends that people sign, and its name; 0 where unknown.
    """

    product: str
    version: str
    build_id: str
    sha256: str
    length: int
    notes: str = ""
    metadata_expires: int = 0
    signed_until: int = 0
    signed_role: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """How long the repository's metadata is valid. Members as in `Offered`."""

    metadata_expires: int
    signed_until: int
    signed_role: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What the health command of a product says.

    Attributes:
        ok: whether the product works.
        text: the checks that failed.
    """

    ok: bool
    text: str = ""


class Updater(Protocol):
    """Reads and verifies the repository, and stages packages. All raise `Hindered` and `Declined`."""

    async def refresh(self, order: Order, now: int) -> Offered:
        """What the repository holds for the order's directive; `now` in seconds since 1970 UTC."""

    async def look(self, now: int) -> Seen:
        """How long the repository's metadata is valid; `now` as in `refresh`."""

    async def stage(self, order: Order, now: int, rate: int | None, progress: Progress) -> None:
        """Has the package verified and on disk; returns at once if it is. `rate` in bytes a second."""

    async def take(self, package: int, now: int, progress: Progress) -> Offered:
        """Has a package verified and on disk that an administrator's descriptor leads to."""

    async def discard(self, keep: tuple[str, ...]) -> None:
        """Removes all packages but those with these SHA-256."""


class Installer(Protocol):
    """Installs what the updater has staged, after judging it again. All raise `Hindered` and `Declined`; repeatable."""

    async def products(self) -> dict[str, Installed]:
        """What is installed, by product."""

    async def prepare(self, product: str, sha256: str, progress: Progress) -> None:
        """Judges the staged package and unpacks it beside the running version."""

    async def switch(self, product: str, sha256: str) -> None:
        """Makes the new version active, on trial."""

    async def prove(self, product: str) -> Proof:
        """Runs the product's health command."""

    async def commit(self, product: str) -> None:
        """Ends the trial: the new version stays."""

    async def roll_back(self, product: str, reason: str) -> str:
        """Makes the version before active again; returns what of the product's configuration was put back, in words."""

    async def withdraw(self, directive: str, key_set: str) -> None:
        """Has root refuse from now on what a signed directive withdraws; `key_set` as an order has it."""
