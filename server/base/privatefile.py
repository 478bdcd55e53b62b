"""Writes files that only the server's user may read, whole or not at all."""

import os
from pathlib import Path

from .errors import RegistryError

MODE = 0o600


def create(path: Path, data: bytes) -> None:
    """A new file of mode 0600, on the disk when this returns. Its directory is made, with mode 0700, if it is missing.

    Raises:
        RegistryError: there is one of that name.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _write(path, data)
    except FileExistsError:
        raise RegistryError(f"{path} exists already; it is not overwritten") from None
    _sync_directory(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Puts another file in the place of one: at any moment the old one or the new one is there, whole."""
    temporary = path.with_name(path.name + ".tmp")
    # One that a crash has left behind: whoever writes here holds the server's lock.
    temporary.unlink(missing_ok=True)
    _write(temporary, data)
    temporary.replace(path)
    _sync_directory(path.parent)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, what: str) -> bytes:
    """The content of a file that nobody else may read.

    Args:
        path: of the file.
        what: it is, for the error.

    Raises:
        RegistryError: it is not there, or its mode lets others use it.
    """
    try:
        # One descriptor for both: the file that was looked at is the file that is read.
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise RegistryError(f"{what} {path} has mode {mode:04o}, so that others may use it; run: chmod 0600 {path}")
            return file.read()
    except OSError as error:
        raise RegistryError(f"{what} {path} cannot be read: {error.strerror}") from None
