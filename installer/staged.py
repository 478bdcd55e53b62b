"""Takes what the updater has staged. The updater may be somebody else's by now, so nothing of it is read twice.

The papers (directive, key set, metadata) are read into memory, and the package is copied into root's own directory. What is
judged, hashed and unpacked is always that copy: to swap a file afterward is of no use.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from common.files import no_trace
from contracts.directive import MAX_DIRECTIVE_CHARS
from contracts.keyset import MAX_KEY_SET_CHARS

STAGING = Path("/var/lib/license-agent-updater/staged")
PACKAGE, METADATA, DIRECTIVE, KEY_SET = "package", "metadata", "directive.jws", "key-set.jws"
MAX_FILES = 300
MAX_FILE_BYTES = 5_000_000
MAX_METADATA_BYTES = 32 * 1024 * 1024
RESERVE_BYTES = 16 * 1024 * 1024
"""Room that stays free beside the copy of a package."""
CHUNK_BYTES = 1024 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class StagedRefused(Exception):
    """What the updater has staged cannot be used.

    Attributes:
        code: "not-staged" if something is missing or has another form, "copy-differs", or "no-room".
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Papers:
    """What comes beside a package, as it was read once.

    Attributes:
        directive: JWS.
        key_set: key sets, one a line.
        metadata: the files of the update repository, by name.
    """

    directive: str
    key_set: str
    metadata: Mapping[str, bytes]


class Staged:
    """One package of the staging directory. Closing it closes the directory.

    Args:
        staging: the updater's directory.
        sha256: names the package.

    Raises:
        StagedRefused: there is no such package.
    """

    def __init__(self, staging: Path, sha256: str) -> None:
        try:
            top = os.open(staging, _DIRECTORY)
        except OSError as error:
            raise StagedRefused("not-staged", f"{staging}: {error.strerror}; the updater has staged nothing") from None
        try:
            self._directory = os.open(sha256, _DIRECTORY, dir_fd=top)
        except OSError as error:
            raise StagedRefused("not-staged", f"{staging}/{sha256}: {error.strerror}; stage the package again") from None
        finally:
            os.close(top)
        self._where = f"{staging}/{sha256}"

    def __enter__(self) -> "Staged":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._directory)

    def papers(self) -> Papers:
        """Reads everything but the package.

        Raises:
            StagedRefused: something is missing or too large.
        """
        try:
            directive = self._text(DIRECTIVE, MAX_DIRECTIVE_CHARS)
            key_set = self._text(KEY_SET, MAX_KEY_SET_CHARS)
            metadata = os.open(METADATA, _DIRECTORY, dir_fd=self._directory)
            try:
                return Papers(directive, key_set, self._metadata(metadata))
            finally:
                os.close(metadata)
        except OSError as error:
            raise self._problem(error) from None

    def copy(self, length: int, sha256: str, directory: Path, progress: Callable[[int], None]) -> BinaryIO:
        """Copies the package and returns the copy, open at its beginning, which no other process can change.

        Args:
            length: bytes that it must have.
            sha256: digest that it must have.
            directory: root's own; the file `package` in it is replaced.
            progress: called with the number of bytes that were copied.

        Raises:
            StagedRefused: it is another file, or there is no room.
            OSError: writing failed.
        """
        space = os.statvfs(directory)
        if space.f_bavail * space.f_frsize < length + RESERVE_BYTES:
            raise StagedRefused(
                "no-room", f"{directory} has no room for the {length} bytes of the package and {RESERVE_BYTES} more; free some"
            )
        try:
            source = os.open(PACKAGE, _READ, dir_fd=self._directory)
        except OSError as error:
            raise self._problem(error) from None
        target = directory / PACKAGE
        target.unlink(missing_ok=True)
        with self._reader(source, PACKAGE) as reader:
            copy = os.fdopen(os.open(target, _NEW, 0o600), "w+b", buffering=0)
            try:
                digest, done = _copied(reader, copy, length, progress)
                if (done, digest) != (length, sha256):
                    raise StagedRefused(
                        "copy-differs",
                        f"{self._where}/{PACKAGE} has {done} bytes or more with SHA-256 {digest}; ordered are {length} with "
                        f"{sha256}; stage the package again",
                    )
                copy.seek(0)
            except BaseException:
                copy.close()
                target.unlink(missing_ok=True)
                raise
        return copy

    def _metadata(self, directory: int) -> dict[str, bytes]:
        with os.scandir(directory) as entries:  # no more of them than there may be: a name takes memory too
            names = [entry.name for entry in islice(entries, MAX_FILES + 1)]
        if len(names) > MAX_FILES:
            raise StagedRefused("not-staged", f"{self._where}/{METADATA} has more than {MAX_FILES} files; stage it again")
        found: dict[str, bytes] = {}
        left = MAX_METADATA_BYTES
        for name in sorted(names):
            found[name] = self._bytes(name, min(left, MAX_FILE_BYTES), directory)
            left -= len(found[name])
        return found

    def _bytes(self, name: str, limit: int, directory: int | None = None) -> bytes:
        descriptor = os.open(name, _READ, dir_fd=self._directory if directory is None else directory)
        with self._reader(descriptor, name) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise StagedRefused("not-staged", f"{self._where}: {name!a} has more than {limit} bytes; stage the package again")
        return data

    def _reader(self, descriptor: int, name: str) -> BinaryIO:
        """A file to read a descriptor by, which it owns; a descriptor of anything else than a regular file is closed."""
        # Before `fdopen`, which leaves a directory's descriptor open: each order would cost root one.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StagedRefused("not-staged", f"{self._where}: {name!a} is not a regular file; stage the package again")
        return os.fdopen(descriptor, "rb")

    def _text(self, name: str, limit: int) -> str:
        try:
            return self._bytes(name, limit).decode("ascii").strip()
        except UnicodeDecodeError:
            raise StagedRefused("not-staged", f"{self._where}/{name} is not a JWS; stage the package again") from None

    def _problem(self, error: OSError) -> StagedRefused:
        name = error.filename if isinstance(error.filename, str) else ""
        # Quoted: the updater chose the name, and the text goes to a log and a terminal.
        return StagedRefused("not-staged", f"{self._where}: {name!a}: {error.strerror}; stage the package again")


def _copied(reader: BinaryIO, copy: BinaryIO, length: int, progress: Callable[[int], None]) -> tuple[str, int]:
    """Copies at most one byte more than `length`; returns the digest and the number of bytes."""
    digest, done = hashlib.sha256(), 0
    while piece := reader.read(min(CHUNK_BYTES, length + 1 - done)):
        digest.update(piece)
        rest = memoryview(piece)
        while rest:
            rest = rest[copy.write(rest) :]
        done += len(piece)
        progress(min(done, length))
        if done > length:
            break
    return digest.hexdigest(), done


def remove_copy(directory: Path, trace: Callable[[str], None] = no_trace) -> None:
    """Removes the copy that `Staged.copy` made."""
    (directory / PACKAGE).unlink(missing_ok=True)
    trace("the package's copy: removed")
