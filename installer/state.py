"""What only root remembers: versions seen, floors, the last directive, and what is in which slot.

A state that cannot be read is an error with what to do, never a fresh start: a fresh start would forget the floors.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from common.files import (
    PRIVATE,
    create,
    file_problems,
    is_full,
    mode_problem,
    no_trace,
    os_problem,
    owner_problem,
    write_atomic,
)
from contracts.keyset import Pin
from updatetrust.metadata import KeptVersions

from .contract import Place
from .phases import Phase

DIRECTORY = Path("/var/lib/license-agent-installer")
STATE, BEGUN = "state.json", "begun"
MAX_STATE_BYTES = 1024 * 1024
Text = Annotated[str, Meta(max_length=64)]
Number = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class StateUnusable(Exception):
    """The state cannot be read or written. The text says which file, why, and what to do."""


class StateNotWritten(StateUnusable):
    """The state cannot be written, for the disk is full or fails; the former one counts."""

    def __init__(self, text: str, *, full: bool) -> None:
        super().__init__(text)
        self.full = full


class Version(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A version that is complete in its slot.

    Attributes:
        version: of the product.
        build_id: of the build.
        sha256: of its package, in hex; "" where it was there before the installer.
    """

    version: Text
    build_id: Text
    sha256: Text


class Pending(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The update that is under way.

    Attributes:
        place: where its version is.
        number: of the directive that orders it.
        not_after: until when the directive holds, seconds since 1970.
        floor: the lowest version of the product that the vendor allowed with this package.
        proved: the version was found healthy since it was switched to.
    """

    place: Place
    number: Number
    not_after: Number
    floor: Text
    proved: bool = False


class Product(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One product.

    Attributes:
        phase: how far its update is.
        places: what is complete, by place.
        good: the place that was committed last; an automatic rollback goes there, whatever the floor is.
        pending: the update, in every phase but idle.
        last: how the last update ended.
    """

    phase: Phase = Phase.IDLE
    places: dict[Place, Version] = {}
    good: Place | None = None
    pending: Pending | None = None
    last: Literal["", "committed", "rolled-back"] = ""

    def __post_init__(self) -> None:
        if (self.pending is None) != (self.phase is Phase.IDLE):
            raise ValueError(f"a product that is {self.phase.value} with or without a pending update")
        named = {self.good, None if self.pending is None else self.pending.place} - {None}
        if not named <= set(self.places) or (self.pending is not None and self.pending.place == self.good):
            raise ValueError("a product whose places do not hold what it names")


class State(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The whole state.

    Attributes:
        v: version of the form.
        key_set: the highest number of a key set of the license server that was accepted.
        directive: the highest number of a directive that was accepted.
        directive_sha256: of that directive's text: only the same one is accepted again, and only until it is committed.
        executed: the number of the last directive that was committed.
        withdrawn: the highest number of a directive that the license server has withdrawn; no directive up to it counts.
        floors: the lowest version of each product that may be installed.
        floor_time: a time that is certainly past, seconds since 1970, from what was signed.
        pins: of the license server's roots in update-trust.json, when the last key set was accepted.
        roots: pins of the roots that may sign the next key set, by the last one.
        metadata: versions of the update repository's metadata; none below is accepted.
        products: by name.
    """

    v: Literal[1] = 1
    key_set: Number = 0
    directive: Number = 0
    directive_sha256: Text = ""
    executed: Number = 0
    withdrawn: Number = 0
    floors: dict[Text, Text] = {}
    floor_time: Number = 0
    pins: tuple[Pin, ...] = ()
    roots: tuple[Pin, ...] = ()
    metadata: KeptVersions = KeptVersions()
    products: dict[Text, Product] = {}


class StateFile:
    """The state on the disk, in a directory of root's that nobody else can enter.

    Args:
        directory: it exists.
        owner: the UID that everything must belong to.
        trace: called after each step of a write.
    """

    def __init__(self, directory: Path = DIRECTORY, owner: int = 0, trace: Callable[[str], None] = no_trace) -> None:
        self._directory = directory
        self._path = directory / STATE
        self._begun = directory / BEGUN
        self._owner = owner
        self._trace = trace

    def load(self) -> State:
        """Reads the state; a machine that never had one begins with an empty one.

        Raises:
            StateUnusable: it cannot be read, or is missing.
        """
        try:
            info = os.lstat(self._directory)
            if not stat.S_ISDIR(info.st_mode):
                raise StateUnusable(f"{self._directory} is not a directory; remove it, and reinstall the package license-agent")
            problems = [mode_problem(self._directory, info, PRIVATE), owner_problem(self._directory, info, (self._owner,))]
            if any(problems):
                raise StateUnusable("; ".join(problem for problem in problems if problem))
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                if os.path.lexists(self._begun):
                    raise StateUnusable(f"{self._path} is missing, and was there; {_WAY_OUT.format(path=self._path)}") from None
                return State()
            with os.fdopen(descriptor, "rb") as file:
                if found := file_problems(self._path, os.fstat(descriptor), (self._owner,)):
                    raise StateUnusable("; ".join(found))
                data = file.read(MAX_STATE_BYTES + 1)
        except OSError as error:
            raise StateUnusable(os_problem(error, str(self._path))) from None
        try:
            return msgspec.json.decode(data[: MAX_STATE_BYTES + 1], type=State)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StateUnusable(f"{self._path} is damaged ({error}); {_WAY_OUT.format(path=self._path)}") from None

    def save(self, state: State) -> None:
        """Writes the state, durably. After a crash the old one is there, or this one.

        Raises:
            StateUnusable: it cannot be written; the old one counts.
        """
        try:
            write_atomic(self._path, msgspec.json.format(msgspec.json.encode(state), indent=1), trace=self._trace)
            self._trace(f"{STATE}: durable")
            if not os.path.lexists(self._begun):
                create(self._begun, b"Marks that there is a state: a missing one is an error.\n")
                self._trace(f"{BEGUN}: durable")
        except OSError as error:
            text = f"{os_problem(error, str(self._path))}; the update goes on when that is solved"
            raise StateNotWritten(text, full=is_full(error)) from None


_WAY_OUT = (
    "restore it from a backup. If there is none: 'rm {path} {path.parent}/" + BEGUN + "' begins again, and forgets the lowest "
    "versions allowed, so do it only where the update repository is trusted"
)
