"""Private files, written so that a power cut leaves the old content or the new, never a mixture."""

import os
from collections.abc import Callable
from pathlib import Path


def fsync_directory(directory: Path) -> None:
    """Makes creations and renames in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_temporary(path: Path, data: bytes | memoryview, mode: int = 0o600, *, durable: bool = True) -> None:
    """Writes a new file at `path`, in the place of a left-over of an earlier attempt, or of whatever else lies there.

    What is written may be secret memory: no copy of it is made.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb", buffering=0) as file, memoryview(data) as rest:
        os.fchmod(file.fileno(), mode)
        written = 0
        while written < len(rest):
            written += file.write(rest[written:]) or 0
        if durable:
            os.fsync(file.fileno())


def no_trace(_step: str) -> None:
    """The trace that production uses: none. Tests pass one that stops a write between two of its steps."""


def write_atomic(
    path: Path,
    data: bytes | memoryview,
    mode: int = 0o600,
    *,
    durable: bool = True,
    trace: Callable[[str], None] = no_trace,
) -> None:
    """Replaces the file at `path`: temporary file, fsync, rename, fsync of the directory.

    Args:
        path: the file.
        data: its new content.
        mode: its permission bits; exactly these, whatever the umask says.
        durable: False leaves out both fsyncs, for files that are only a view.
        trace: told the name of each step that is done.
    """
    temporary = path.with_name(f".{path.name}.new")
    write_temporary(temporary, data, mode, durable=durable)
    trace(f"{path.name}: written")
    temporary.replace(path)
    trace(f"{path.name}: renamed")
    if durable:
        fsync_directory(path.parent)
