"""Keeps half and whole packages in the updater's own directory, and follows no link in it.

    partial/<sha256>.part, <sha256>.etag     what a download that broke off has brought; one package at most
    staged/<sha256>/                         a verified package: package, metadata/, directive.jws, key-set.jws
    staged/.<sha256>.new/                    the same while it is made
    metadata/                                python-tuf's: what was seen of the repository

Everything is opened below descriptors of these directories, and a name that leads anywhere else than to a file of ours is
removed, not followed. Nothing is in `staged` under its name before it is verified and durable.
"""

import errno
import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from common.files import is_full
from ipc.byteranges import is_strong
from ipc.updatermessages import MAX_KEPT, UpdaterCode

from .failures import UpdateFailed

RESERVE_BYTES = 64 * 1024 * 1024
"""Bytes of the file system that a download leaves free: the core's state and the log are there too."""
PACKAGE = "package"
METADATA, HISTORY = "metadata", "root_history"
"""Where python-tuf's client keeps what it has verified."""
_NAME = re.compile(r"[0-9a-f]{64}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def disk_failure(error: OSError, what: str) -> UpdateFailed:
    """The failure of an order for an error of the system."""
    if is_full(error):
        return UpdateFailed(UpdaterCode.NO_SPACE, f"{what}: {error.strerror}; free some space in /var")
    return UpdateFailed(UpdaterCode.DISK, f"{what}: {error.strerror or error}")


class Part:
    """A package that is being downloaded: a file that only grows.

    Args:
        directory: descriptor of `partial`; stays the caller's.
        sha256: of the whole package.

    Attributes:
        size: bytes in it.
    """

    def __init__(self, directory: int, sha256: str) -> None:
        self._directory = directory
        self._name, self._etag_name = f"{sha256}.part", f"{sha256}.etag"
        self._etag: str | None = None
        self.descriptor = self._open()
        self.size = os.fstat(self.descriptor).st_size

    def _open(self) -> int:
        try:
            found = os.open(self._name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._directory)
        except FileNotFoundError:
            return os.open(self._name, _NEW, 0o600, dir_fd=self._directory)
        except OSError:
            found = -1
        if found >= 0:
            info = os.fstat(found)
            if stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and info.st_nlink == 1:
                return found
            os.close(found)
        remove(self._directory, self._name)
        return os.open(self._name, _NEW, 0o600, dir_fd=self._directory)

    @property
    def etag(self) -> str | None:
        """The entity tag of the file that the bytes come from; None if it is not known."""
        try:
            file = os.open(self._etag_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._directory)
        except OSError:
            return None
        try:
            text = os.read(file, 256).decode("ascii", "replace")
        except OSError:
            return None
        finally:
            os.close(file)
        return text if is_strong(text) else None

    def note_etag(self, etag: str | None) -> None:
        """Keeps the entity tag for a later download; at most one write for each tag."""
        if etag == self._etag:
            return
        remove(self._directory, self._etag_name)
        if etag is not None:
            file = os.open(self._etag_name, _NEW, 0o600, dir_fd=self._directory)
            try:
                os.write(file, etag.encode("ascii"))
            finally:
                os.close(file)
        self._etag = etag

    def write(self, data: bytes) -> None:
        """Appends.

        Raises:
            OSError: ENOSPC among them.
        """
        with memoryview(data) as rest:
            written = 0
            while written < len(rest):
                written += os.pwrite(self.descriptor, rest[written:], self.size + written)
        self.size += len(data)

    def empty(self) -> None:
        """Drops what is in it."""
        self.note_etag(None)
        remove(self._directory, self._etag_name)
        os.ftruncate(self.descriptor, 0)
        self.size = 0

    def close(self) -> None:
        """Closes the file, which stays."""
        os.close(self.descriptor)


class Staging:
    """The updater's directory.

    Args:
        directory: exists, belongs to the updater's user and to nobody else.

    Raises:
        UpdateFailed: DISK, if it cannot be used so.
    """

    def __init__(self, directory: Path) -> None:
        self._open: list[int] = []
        try:
            self._top = self._opened(directory)
            info = os.fstat(self._top)
            if info.st_uid != os.geteuid() or info.st_mode & 0o077:
                raise UpdateFailed(UpdaterCode.DISK, f"{directory} must belong to uid {os.geteuid()} with mode 0700")
            self._partial, self._staged = self._folder("partial"), self._folder("staged")
        except OSError as error:
            self.close()
            raise disk_failure(error, str(directory)) from None
        except UpdateFailed:
            self.close()
            raise

    def _opened(self, path: Path | str, below: int | None = None) -> int:
        descriptor = os.open(path, _DIRECTORY, dir_fd=below)
        self._open.append(descriptor)
        return descriptor

    def _folder(self, name: str, below: int | None = None) -> int:
        below = self._top if below is None else below
        try:
            return self._opened(name, below)
        except FileNotFoundError:
            pass
        except OSError:
            remove(below, name)
        os.mkdir(name, 0o700, dir_fd=below)
        return self._opened(name, below)

    def names(self) -> list[str]:
        """The packages that are staged, by their SHA-256."""
        return sorted(name for name in os.listdir(self._staged) if _NAME.fullmatch(name))[:MAX_KEPT]

    def has(self, sha256: str) -> bool:
        """Whether a package is staged, by its name."""
        return sha256 in self.names()

    def holds(self, sha256: str, length: int) -> bool:
        """Whether a package is staged as a file of its length. What is there under its name and is not, is removed.

        A disk that was repaired, or somebody who had this process, may have left anything, and no order would get past it. The
        installer hashes the content.

        Args:
            sha256: of the package.
            length: of the package, bytes.

        Raises:
            OSError: it cannot be removed.
        """
        if not self.has(sha256):
            return False
        try:
            info = os.stat(f"{sha256}/{PACKAGE}", dir_fd=self._staged, follow_symlinks=False)
            if stat.S_ISREG(info.st_mode) and info.st_size == length:
                return True
        except OSError:
            pass
        remove(self._staged, sha256)
        return False

    def tidy_metadata(self) -> None:
        """Makes the place of the repository's metadata, and removes what has no place there, before anybody opens it.

        python-tuf follows a link, waits for a pipe, and ends at a folder in place of a file: then no update would ever follow.

        Raises:
            OSError: the disk fails.
        """
        metadata = self._folder(METADATA)
        for name in os.listdir(metadata):
            wanted = stat.S_ISDIR if name == HISTORY else stat.S_ISREG
            if not wanted(os.stat(name, dir_fd=metadata, follow_symlinks=False).st_mode):
                remove(metadata, name)
        history = self._folder(HISTORY, metadata)
        for name in os.listdir(history):
            if not stat.S_ISREG(os.stat(name, dir_fd=history, follow_symlinks=False).st_mode):
                remove(history, name)

    def part(self, sha256: str) -> Part:
        """The half package; it is made if there is none. Those of other packages are removed."""
        for name in os.listdir(self._partial):
            if not name.startswith(f"{sha256}."):
                remove(self._partial, name)
        return Part(self._partial, sha256)

    def check_space(self, more: int) -> None:
        """Makes sure that there is room for so many bytes more.

        Raises:
            UpdateFailed: NO_SPACE.
        """
        space = os.fstatvfs(self._top)
        free = space.f_bavail * space.f_frsize
        if free < more + RESERVE_BYTES:
            need = (more + RESERVE_BYTES) // 2**20
            raise UpdateFailed(UpdaterCode.NO_SPACE, f"the package needs {need} MiB on /var and {free // 2**20} MiB are free")

    def stage(self, sha256: str, part: Part | None, files: Mapping[str, bytes]) -> None:
        """Gives a verified package its place, durably and in one step.

        Args:
            sha256: of the package, which the caller has compared.
            part: the whole package; its file is moved. None for a package that is staged already: what comes along is
                replaced.
            files: what comes along, by name: `directive.jws`, `metadata/timestamp.json`.
        """
        new = f".{sha256}.new"
        remove(self._staged, new)
        os.mkdir(new, 0o700, dir_fd=self._staged)
        place = os.open(new, _DIRECTORY, dir_fd=self._staged)
        try:
            for name, data in files.items():
                folder, _, last = name.rpartition("/")
                if folder and folder not in os.listdir(place):
                    os.mkdir(folder, 0o700, dir_fd=place)
                _write(place, f"{folder}/{last}" if folder else last, data)
            for folder in {name.rpartition("/")[0] for name in files} - {""}:
                _sync(place, folder)
            if part is None:
                os.link(f"{sha256}/{PACKAGE}", PACKAGE, src_dir_fd=self._staged, dst_dir_fd=place, follow_symlinks=False)
            else:
                os.fsync(part.descriptor)
                os.fchmod(part.descriptor, 0o600)
                os.rename(f"{sha256}.part", PACKAGE, src_dir_fd=self._partial, dst_dir_fd=place)
            os.fsync(place)
        finally:
            os.close(place)
        remove(self._staged, sha256)
        os.rename(new, sha256, src_dir_fd=self._staged, dst_dir_fd=self._staged)
        os.fsync(self._staged)
        remove(self._partial, f"{sha256}.etag")

    def discard(self, keep: frozenset[str]) -> None:
        """Removes what is staged or half downloaded, except these packages."""
        for directory in (self._staged, self._partial):
            for name in os.listdir(directory):
                if name.partition(".")[0] not in keep:
                    remove(directory, name)
        os.fsync(self._staged)

    def close(self) -> None:
        """Closes the directories."""
        while self._open:
            os.close(self._open.pop())


def remove(directory: int, name: str) -> None:
    """Removes whatever has a name below a directory: a file, a link (not what it leads to), or a whole directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        shutil.rmtree(name, dir_fd=directory)


def _write(directory: int, name: str, data: bytes) -> None:
    file = os.open(name, _NEW, 0o600, dir_fd=directory)
    try:
        with memoryview(data) as rest:
            written = 0
            while written < len(rest):
                written += os.write(file, rest[written:])
        os.fsync(file)
    finally:
        os.close(file)


def _sync(directory: int, name: str) -> None:
    descriptor = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
