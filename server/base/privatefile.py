"""Creates and reads the files that only the server's user may read, with errors that say what to do."""

import os
from pathlib import Path

from common.files import create as create_file
from common.files import mode_problem

from .errors import RegistryError


def create(path: Path, data: bytes) -> None:
    """Creates a file of mode 0600, durably. Creates its directory, with mode 0700, if it is missing.

    Raises:
        RegistryError: a file of that name exists.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700, parents=True)
    try:
        create_file(path, data)
    except FileExistsError:
        raise RegistryError(f"{path} already exists and is not overwritten") from None


def read(path: Path, what: str) -> bytes:
    """Returns the content of a file that nobody else may read.

    Args:
        path: the file.
        what: what it holds, for the error.

    Raises:
        RegistryError: it cannot be read, or its mode lets others use it.
    """
    try:
        # One descriptor for both: the file that was examined is the file that is read.
        with path.open("rb") as file:
            if problem := mode_problem(path, os.fstat(file.fileno())):
                raise RegistryError(f"{what} {problem}")
            return file.read()
    except OSError as error:
        raise RegistryError(f"{what} {path} cannot be read: {error.strerror}") from None
