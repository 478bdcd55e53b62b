"""Keeps two packages of the agent in a directory of root's: the one that runs, and the one that replaces it.

Only the standard library and `common` are imported: the rescue copy runs this.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from common.files import fsync_directory, no_trace, write_atomic

PACKAGE = "license-agent"
"""The only package that is installed in this way."""
PLACES = ("a", "b")
MAX_NOTE_BYTES = 4096
CHUNK_BYTES = 1024 * 1024


class PackageRefused(Exception):
    """A kept package cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of a package that is complete.

    Attributes:
        version: as dpkg writes it.
        sha256: of the file, in hex.
    """

    version: str
    sha256: str


class Packages:
    """The two files, `a.deb` and `b.deb`, each with a note beside it that says what it is. Without its note a file is none.

    Args:
        directory: root's own; it is made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)

    def file(self, place: str) -> Path:
        """Where the package of a place is."""
        return self.directory / f"{place}.deb"

    def kept(self, place: str) -> Kept | None:
        """What is in a place; None if nothing whole is."""
        try:
            with self._note(place).open("rb") as file:
                found = json.loads(file.read(MAX_NOTE_BYTES))
            return Kept(str(found["version"]), str(found["sha256"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def put(self, place: str, package: BinaryIO, version: str, trace: Callable[[str], None] = no_trace) -> None:
        """Replaces the package of a place. When this returns, it is on the disk.

        Args:
            place: "a" or "b".
            package: at its beginning.
            version: as dpkg writes it.
            trace: called after each write.
        """
        new = self.directory / f".{place}.deb.new"
        new.unlink(missing_ok=True)
        digest = hashlib.sha256()
        try:
            with new.open("xb") as file:
                while data := package.read(CHUNK_BYTES):
                    digest.update(data)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            trace(f"{place}.deb: written")
        except OSError:
            new.unlink(missing_ok=True)
            raise
        self._note(place).unlink(missing_ok=True)
        fsync_directory(self.directory)
        trace(f"{place}.deb: forgotten")
        new.replace(self.file(place))
        trace(f"{place}.deb: renamed")
        write_atomic(self._note(place), json.dumps({"version": version, "sha256": digest.hexdigest()}).encode(), trace=trace)

    @contextlib.contextmanager
    def opened(self, place: str, sha256: str) -> Iterator[int]:
        """Opens a package, hashes what was opened, and gives that descriptor.

        Raises:
            PackageRefused: it is not there, or has another digest.
        """
        path = self.file(place)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise PackageRefused(f"{path}: {error.strerror}; prepare the update again") from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PackageRefused(f"{path} is not a regular file; prepare the update again")
            digest = hashlib.sha256()
            while data := os.read(descriptor, CHUNK_BYTES):
                digest.update(data)
            if digest.hexdigest() != sha256:
                raise PackageRefused(f"{path} has the SHA-256 {digest.hexdigest()}, not {sha256}; prepare the update again")
            os.lseek(descriptor, 0, os.SEEK_SET)
            yield descriptor
        finally:
            os.close(descriptor)

    def _note(self, place: str) -> Path:
        return self.directory / f"{place}.json"


def other(place: str) -> str:
    """The place beside a place."""
    return "b" if place == "a" else "a"
