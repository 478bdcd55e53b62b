"""Keeps the bundle of the next system in a directory of root's: the candidate, and the one that RAUC has verified.

Without its note the bundle is void. A second note remembers which version ran when the bundle was accepted: of an image that
the factory wrote, RAUC knows nothing once the machine runs from the other slot.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from common.files import fsync_directory, write_atomic

from ..contract import Place

CANDIDATE, BUNDLE, NOTE, BEFORE = "candidate.raucb", "bundle.raucb", "bundle.json", "before.json"
CHUNK_BYTES = 1024 * 1024
MAX_NOTE_BYTES = 4096


class Note(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a place holds, or is to hold."""

    place: Place
    version: str
    build_id: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A bundle that may be installed.

    Attributes:
        path: of the file.
        place: where it shall be installed.
        version, build_id: of the system.
    """

    path: Path
    place: Place
    version: str
    build_id: str


def kept(directory: Path) -> Kept | None:
    """What is kept; None if nothing whole is."""
    note = _note(directory / NOTE)
    return None if note is None else Kept(directory / BUNDLE, note.place, note.version, note.build_id)


def before(directory: Path) -> Note | None:
    """Which version ran when the last bundle was accepted."""
    return _note(directory / BEFORE)


def put(directory: Path, package: BinaryIO, trace: Callable[[str], None]) -> None:
    """Writes the candidate.

    Raises:
        OSError: the disk fails or is full; nothing of it is left.
    """
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    path = directory / CANDIDATE
    path.unlink(missing_ok=True)
    try:
        with path.open("xb") as file:
            while data := package.read(CHUNK_BYTES):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    trace(f"{CANDIDATE}: written")


def accept(directory: Path, note: Note, ran: Note, trace: Callable[[str], None]) -> None:
    """Makes the candidate the bundle that is kept.

    Args:
        note: what it is, and where it shall be installed.
        ran: what runs now.
    """
    remove(directory, trace)
    write_atomic(directory / BEFORE, msgspec.json.encode(ran), trace=trace)
    (directory / CANDIDATE).replace(directory / BUNDLE)
    trace(f"{BUNDLE}: renamed")
    write_atomic(directory / NOTE, msgspec.json.encode(note), trace=trace)


def remove(directory: Path, trace: Callable[[str], None]) -> None:
    """Removes what is kept."""
    if not directory.exists():
        return
    (directory / NOTE).unlink(missing_ok=True)
    fsync_directory(directory)
    trace(f"{NOTE}: removed")
    (directory / BUNDLE).unlink(missing_ok=True)


def discard(directory: Path) -> None:
    """Removes the candidate."""
    (directory / CANDIDATE).unlink(missing_ok=True)


def _note(path: Path) -> Note | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_NOTE_BYTES), type=Note)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
