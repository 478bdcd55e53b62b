"""Writes private files so that a power cut leaves the old content or the new, and checks who may use a file."""

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

PRIVATE = 0o077
"""The permission bits that a private file must not have."""
OTHERS_WRITE = 0o022
"""The permission bits of a file that others may read but not change."""
_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # fcntl.h, linux/fs.h; Python has no call of renameat2(2)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's name into an OSError that has none: write(2), fsync(2) and others know only a descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def fsync_directory(directory: Path) -> None:
    """Makes creations and renames in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with naming(directory):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes | memoryview, mode: int, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with naming(path), os.fdopen(descriptor, "wb", buffering=0) as file, memoryview(data) as rest:
            os.fchmod(file.fileno(), mode)
            written = 0
            while written < len(rest):
                written += file.write(rest[written:]) or 0
            if durable:
                os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)  # a part of the content is no file, and takes room on a full disk
        raise


def temporary_of(path: Path) -> Path:
    """Where the content is written before the file gets its name: always the same place, so that crashes leave only one."""
    return path.with_name(f".{path.name}.new")


def create(path: Path, data: bytes | memoryview, mode: int = 0o600) -> None:
    """Creates a file. When this returns, the file and its name are on the disk; a crash leaves the whole file, or none.

    One process may create a file at a time, as with `write_atomic`.

    Raises:
        FileExistsError: something has that name already; it stays as it is.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    temporary = temporary_of(path)
    write_temporary(temporary, data, mode)
    try:
        place(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def place(temporary: Path, path: Path) -> None:
    """Gives a finished temporary file its name, durably and in one step.

    Raises:
        FileExistsError: something has that name already; it stays as it is, and the temporary file too.
    """
    sys.audit("os.rename", temporary, path, -1, -1)
    if _libc.renameat2(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        # A file system of the network does not know the flag.
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), str(path))
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.rename(path)
    fsync_directory(path.parent)


def write_temporary(path: Path, data: bytes | memoryview, mode: int = 0o600, *, durable: bool = True) -> None:
    """Creates a file at `path`, and first removes what an earlier attempt, or anyone else, has left there.

    `data` may be secret memory: it is not copied.
    """
    path.unlink(missing_ok=True)
    _write_new(path, data, mode, durable)


def no_trace(_step: str) -> None:
    """The trace that production uses: it does nothing. Tests pass one that stops a write between two of its steps."""


def write_atomic(
    path: Path,
    data: bytes | memoryview,
    mode: int = 0o600,
    *,
    durable: bool = True,
    trace: Callable[[str], None] = no_trace,
) -> None:
    """Replaces the file at `path`: temporary file, fsync, rename, fsync of the directory.

    One process may write a file at a time: the temporary file always has the same name, so that a crash leaves only one.

    Args:
        path: the file.
        data: its new content.
        mode: its permission bits; exactly these, whatever the umask says.
        durable: False leaves out both fsyncs, for files that are only a view.
        trace: called with the name of each step that is done.
    """
    temporary = temporary_of(path)
    write_temporary(temporary, data, mode, durable=durable)
    trace(f"{path.name}: written")
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    trace(f"{path.name}: renamed")
    if durable:
        fsync_directory(path.parent)


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk has no room, or a user may have no more of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def os_problem(error: OSError, what: str = "the system") -> str:
    """An error of the system as a sentence: which file, what happened.

    Args:
        error: as it was raised.
        what: what the error is about, where it names no file: fsync(2), write(2) and others know only a descriptor.
    """
    reason = error.strerror or str(error) or type(error).__name__
    return f"{os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else what}: {reason}"


def mode_problem(path: Path, info: os.stat_result, forbidden: int = PRIVATE) -> str | None:
    """Says which of the forbidden permission bits a file has, and how to remove them; None if it has none of them."""
    if not info.st_mode & forbidden:
        return None
    may, fix = ("use", "0600") if forbidden == PRIVATE else ("change", "go-w")
    return f"{path} has mode {stat.S_IMODE(info.st_mode):04o}, so that others may {may} it; run: chmod {fix} {path}"


def owner_problem(path: Path, info: os.stat_result, owners: Collection[int]) -> str | None:
    """Says who owns a file and who should; None if its owner is one of `owners`."""
    if info.st_uid in owners:
        return None
    wanted = " or ".join(str(uid) for uid in sorted(owners))
    return f"{path} belongs to uid {info.st_uid}, not to uid {wanted}; run: chown {min(owners)} {path}"


def file_problems(path: Path, info: os.stat_result, owners: Collection[int], forbidden: int = PRIVATE) -> list[str]:
    """Says everything that is wrong with a file's kind, mode and owner, one sentence each.

    Args:
        path: for the sentences.
        info: of the open file or, if it cannot be opened, of its name.
        owners: UIDs, one of which must own it.
        forbidden: permission bits that it must not have.
    """
    if not stat.S_ISREG(info.st_mode):
        return [f"{path} is not a regular file; put the file itself there"]
    return [problem for problem in (mode_problem(path, info, forbidden), owner_problem(path, info, owners)) if problem]
