"""Keeps the repository of updates in a directory, and publishes in steps each of which leaves a repository that is valid.

    DIRECTORY/metadata/     what the roles have signed: N.root.json for ever, timestamp.json, N.snapshot.json and so on
    DIRECTORY/targets/      the packages: <product>/<sha256>.<file>
    DIRECTORY/.lock         held while somebody publishes

Any web server may serve the two folders, and any copy of them is as good as they are: clients trust signatures only. Readers
need no lock: a file that something names never changes, and timestamp.json is replaced in one step.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from common.files import fsync_directory, no_trace, os_problem, temporary_of, write_atomic, write_temporary
from server.base.errors import Conflict, RegistryError

from . import packages
from .online import Written
from .packages import Package
from .published import Published, file_name, load, load_roots
from .words import KEEP_VERSIONS, MAX_METADATA_BYTES, PACKAGE_ROLES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP

_CHUNK = 1024 * 1024
_MODE, _DIRECTORY_MODE = 0o644, 0o755


class Repository:
    """A repository in a directory.

    Args:
        directory: of the repository.
        trace: called with each step of a publication that is done, before the next one begins.
    """

    def __init__(self, directory: Path, trace: Callable[[str], None] = no_trace) -> None:
        self.directory = directory
        self._metadata = directory / "metadata"
        self._targets = directory / "targets"
        self._trace = trace

    @property
    def exists(self) -> bool:
        """Whether something was published."""
        return (self._metadata / f"{TIMESTAMP}.json").exists()

    def read(self, name: str) -> bytes | None:
        """The content of a metadata file; None if there is none.

        Raises:
            RegistryError: it cannot be read, or is too large to be metadata.
        """
        try:
            with (self._metadata / name).open("rb") as file:
                data = file.read(MAX_METADATA_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise RegistryError(f"the repository of updates cannot be read: {os_problem(problem)}") from None
        if len(data) > MAX_METADATA_BYTES:
            raise RegistryError(f"{self._metadata / name} is too large to be metadata: restore it from a copy")
        return data

    def load(self) -> Published | None:
        """What is published, verified; None before the first publication. Raises RegistryError."""
        return load(self.read)

    def present(self) -> Published:
        """What is published, verified.

        Raises:
            RegistryError: nothing is, or it is not valid.
        """
        found = self.load()
        if found is None:
            raise RegistryError(
                f"{self.directory} has no repository of updates yet: 'license-server ota init' begins one, and "
                "'license-server ota publish' publishes it"
            )
        return found

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the repository, so that nobody else publishes meanwhile.

        Raises:
            Conflict: somebody else publishes.
            RegistryError: the directory cannot be used.
        """
        try:
            for each in (self.directory, self._metadata, self._targets):
                _make(each)
            descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as problem:
            raise RegistryError(f"the repository of updates cannot be written: {os_problem(problem)}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict("somebody else publishes at this moment: try again") from None
            yield
        finally:
            os.close(descriptor)

    def put(self, published: list[Package], sources: Mapping[str, Path]) -> None:
        """Brings new packages into the directory, where nothing names them yet. The caller holds the lock.

        Args:
            published: the packages that the repository will name.
            sources: where the file of each new one is, by its path in the repository.

        Raises:
            RegistryError: a file cannot be written, or a package is not the one that was signed.
        """
        try:
            for package in published:
                self._put(package, sources.get(package.path))
        except OSError as problem:
            raise RegistryError(f"the repository of updates cannot be written: {os_problem(problem)}") from None

    def write(self, files: list[Written], published: list[Package]) -> None:
        """Publishes metadata in the order that is given. The caller holds the lock.

        Args:
            files: of `online.files_of` or `online.renewed`.
            published: the packages that the repository names afterwards; `put` has them in the directory.

        Raises:
            RegistryError: a file cannot be written. What was published before still is, or what is new already.
        """
        try:
            for file in files:
                self._write(file)
            self._sweep(published)
        except OSError as problem:
            raise RegistryError(f"the repository of updates cannot be written: {os_problem(problem)}") from None

    def _put(self, package: Package, source: Path | None) -> None:
        path = self._targets / package.file
        if path.exists() and path.stat().st_size == package.target.length:
            return  # it got its name behind its digest was checked
        if source is None:
            raise RegistryError(f"{path} is missing: copy it back, or withdraw {package.path}")
        _make(path.parent)
        temporary = temporary_of(path)
        copy_checked(source, temporary, package)
        self._trace(f"{package.file}: written")
        temporary.replace(path)
        fsync_directory(path.parent)
        self._trace(f"{package.file}: renamed")

    def _write(self, file: Written) -> None:
        path = self._metadata / file.name
        if file.name.endswith(f".{ROOT}.json") and (known := self.read(file.name)) not in (None, file.data):
            raise Conflict(f"{path} was published with another content, and a root never changes: {len(known or b'')} bytes")
        write_atomic(path, file.data, _MODE, trace=self._trace)
        self._trace(f"{file.name}: durable")

    def _sweep(self, published: list[Package]) -> None:
        """Removes packages that nothing names any more, and metadata that no client can have begun with."""
        named = {package.file for package in published}
        for path in sorted(self._targets.glob("*/*")):
            if str(path.relative_to(self._targets)) not in named:
                path.unlink()
        newest: dict[str, int] = {}
        found: list[tuple[str, int, Path]] = []
        for path in self._metadata.glob("*.*.json"):
            version, _, role = path.name.removesuffix(".json").partition(".")
            if version.isdecimal() and role != ROOT:
                found.append((role, int(version), path))
                newest[role] = max(newest.get(role, 0), int(version))
        for role, number, path in found:
            if number <= newest[role] - KEEP_VERSIONS:
                path.unlink()

    def export(self, directory: Path) -> int:
        """Copies what is published to another directory, in the order of a publication; returns how many files were copied.

        A copy that was interrupted is valid, and the next one finishes it. What is there already is not copied again.

        Raises:
            RegistryError: nothing is published, or the directory cannot be written.
        """
        with self.locked():
            present = self.present()
            named = list(packages.packages_in(present.roles))
            other = Repository(directory, self._trace)
            copied = 0
            with other.locked():
                named_files = [file_name(role, present.versions()[role]) for role in (*PACKAGE_ROLES, TARGETS, SNAPSHOT)]
                roots = [file_name(ROOT, each.signed.version) for each in present.roots]
                # As in `online.files_of`: the first root before everything, a later one behind the timestamp that it asks for.
                first = [] if load_roots(other.read) else roots
                names = [*first, *named_files, file_name(TIMESTAMP, 0), *roots]
                files = [Written(name, self.read(name) or b"") for name in dict.fromkeys(names)]
                files = [file for file in files if other.read(file.name) != file.data]
                copied = len(files) + sum(not (directory / "targets" / each.file).exists() for each in named)
                other.put(named, {each.path: self._targets / each.file for each in named})
                other.write(files, named)
            return copied


def _make(directory: Path) -> None:
    """Creates a directory that a web server may read, whatever the umask says."""
    if not directory.is_dir():
        directory.mkdir(parents=True)
        directory.chmod(_DIRECTORY_MODE)
        fsync_directory(directory.parent)


def digest_of(path: Path) -> tuple[str, int]:
    """SHA-256, in hex, and length of a file.

    Raises:
        RegistryError: it cannot be read.
    """
    digest, length = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                length += len(chunk)
    except OSError as problem:
        raise RegistryError(f"the package cannot be read: {os_problem(problem)}") from None
    return digest.hexdigest(), length


def copy_checked(source: Path, target: Path, package: Package) -> None:
    """Copies the file of a package, durably, and checks what was copied.

    Raises:
        RegistryError: it is not the file that was signed; nothing is left at `target`.
        OSError: it cannot be read or written.
    """
    write_temporary(target, b"", _MODE, durable=False)
    digest, length = hashlib.sha256(), 0
    with source.open("rb") as taken, target.open("r+b") as file:
        while chunk := taken.read(_CHUNK):
            digest.update(chunk)
            length += len(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if (digest.hexdigest(), length) != (package.target.sha256, package.target.length):
        target.unlink()
        raise RegistryError(
            f"{source} is not the package that was signed for {package.path}: it has {length} bytes and SHA-256 "
            f"{digest.hexdigest()}, and {package.target.length} bytes and {package.target.sha256} were signed"
        )
