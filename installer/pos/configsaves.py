"""Keeps a product's configuration as it was before an update, and puts it back when the update is taken back (OT-06).

The directory is one that root's configuration names. It, all above it and all below it must be root's, since root writes there:
every directory is opened from the one above it and no link is followed. What stands in the way of a file that is put back is
kept and named; a file that came later is left and named. Only the standard library and `common` are imported.
"""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from common.files import OTHERS_WRITE, fsync_directory, no_trace, write_atomic, write_temporary

MAX_FILES = 1000
MAX_BYTES = 32 * 1024 * 1024
MAX_NAMED = 5
"""Files that a text names; it counts the others."""
INDEX, REPLACED, DONE = "index.json", "replaced", "restored.json"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_Entry = tuple[str, str, int, int, int, str]
"""Kind (`dir`, `file` or `link`), path in the directory, mode, UID, GID, and where a link leads."""


class SaveRefused(Exception):
    """The configuration cannot be kept or put back. The text says why, and what to do."""


def save(top: Path, into: Path, owner: int = 0, trace: Callable[[str], None] = no_trace) -> None:
    """Copies a directory. May be repeated; a kill leaves the former copy, this one or none.

    Args:
        top: the product's configuration.
        into: where the copy is; only root may enter its parent, which exists.
        owner: the UID that every directory must belong to.
        trace: called after each write.

    Raises:
        SaveRefused: it is not root's, or too large.
        OSError: the disk fails.
    """
    new = into.with_name(f".{into.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    index: list[_Entry] = []
    size = 0
    with _opened(top, owner) as directory:
        for entry, below in _walk(directory, top, owner):
            kind, name = entry[0], entry[1]
            if kind == "file":
                data = _content(below, Path(name).name)
                size += len(data)
                if size > MAX_BYTES or len(index) >= MAX_FILES:
                    raise SaveRefused(
                        f"{top} has more than {MAX_FILES} files or {MAX_BYTES} bytes; keep the product's data elsewhere"
                    )
                write_temporary(new / str(len(index)), data)
            index.append(entry)
    write_atomic(new / INDEX, json.dumps(index).encode(), trace=trace)
    shutil.rmtree(into, ignore_errors=True)
    new.rename(into)
    fsync_directory(into.parent)
    trace("configuration: saved")


def restore(top: Path, saved: Path, owner: int = 0, trace: Callable[[str], None] = no_trace) -> str:
    """Puts the copy back. May be repeated; a file that was put back already is not touched again.

    Args:
        top: as in `save`.
        saved: what `save` made.
        owner: as in `save`.
        trace: called after each write.

    Returns:
        What was changed, in words; empty if nothing had to be.

    Raises:
        SaveRefused: there is no copy, or the directory is not root's.
        OSError: the disk fails.
    """
    try:
        index: list[_Entry] = [tuple(entry) for entry in json.loads((saved / INDEX).read_bytes())]
    except FileNotFoundError:
        raise SaveRefused(f"{saved} does not exist, so nothing of {top} is put back") from None
    except (ValueError, TypeError):
        raise SaveRefused(f"{saved / INDEX} is damaged, so nothing of {top} is put back") from None
    if any(part in ("", ".", "..") for entry in index for part in entry[1].split("/")):
        raise SaveRefused(f"{saved / INDEX} is damaged, so nothing of {top} is put back")
    changed = set(_begun(saved))
    with _opened(top, owner) as directory:
        for number, entry in enumerate(index):
            name = Path(entry[1])
            with _below(directory, name.parent, top, owner) as at:
                if _same(at, name.name, entry, saved / str(number)):
                    continue
                if _keep_aside(at, name.name, saved / REPLACED / quote(entry[1], safe="")):
                    trace(f"{name}: kept aside")
                changed.add(entry[1])
                write_atomic(saved / DONE, json.dumps(sorted(changed)).encode(), trace=trace)
                _put(at, name.name, entry, saved / str(number))
            trace(f"{name}: put back")
        known = {entry[1] for entry in index}
        later = sorted(entry[1] for entry, _ in _walk(directory, top, owner) if entry[1] not in known)
    said = []
    if changed:
        said.append(f"put back in {top}: {_named(sorted(changed))}; what was there instead is in {saved / REPLACED}")
    if later:
        said.append(f"left in {top}, since it came later: {_named(later)}")
    return "; ".join(said)


def _begun(saved: Path) -> list[str]:
    """What an earlier attempt, which was killed, has put back."""
    try:
        return [str(name) for name in json.loads((saved / DONE).read_bytes())]
    except (FileNotFoundError, ValueError):
        return []


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(ascii(name)[1:-1][:60] for name in names[:MAX_NAMED]) + more


@contextlib.contextmanager
def _opened(path: Path, owner: int) -> Iterator[int]:
    """Opens a directory from the root, name by name: who can change one on the way could lead root elsewhere."""
    descriptor = os.open("/", _DIRECTORY)
    try:
        for count, name in enumerate(path.parts[1:], 2):
            at = Path(*path.parts[:count])
            try:
                below = os.open(name, _DIRECTORY, dir_fd=descriptor)
            except OSError as error:
                raise SaveRefused(f"{at}: {error.strerror}; create it as a directory of root's, or correct 'config'") from None
            os.close(descriptor)
            descriptor = below
            _require_roots(descriptor, at, owner, last=at == path)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _below(directory: int, names: Path, top: Path, owner: int) -> Iterator[int]:
    descriptor = os.dup(directory)
    try:
        at = top
        for name in names.parts:
            at /= name
            try:
                below = os.open(name, _DIRECTORY, dir_fd=descriptor)
            except OSError as error:
                raise SaveRefused(f"{at}: {error.strerror}; it was a directory when the configuration was saved") from None
            os.close(descriptor)
            descriptor = below
            _require_roots(descriptor, at, owner)
        yield descriptor
    finally:
        os.close(descriptor)


def _require_roots(descriptor: int, path: Path, owner: int, *, last: bool = True) -> None:
    info = os.fstat(descriptor)
    # In a directory with the sticky bit, as /tmp, others cannot rename what is not theirs.
    shared = info.st_mode & OTHERS_WRITE and (last or not info.st_mode & stat.S_ISVTX)
    if info.st_uid not in {0, owner} or shared:
        raise SaveRefused(
            f"{path} belongs to uid {info.st_uid} with mode {stat.S_IMODE(info.st_mode):04o}, so others could lead root "
            f"elsewhere; run: chown root {path}; chmod go-w {path}"
        )


def _walk(directory: int, top: Path, owner: int, inside: str = "") -> Iterator[tuple[_Entry, int]]:
    """What is in a directory and below it, each with a descriptor of the directory that it is in; directories come first."""
    for name in sorted(os.listdir(directory)):
        path = f"{inside}{name}"
        info = os.lstat(name, dir_fd=directory)
        facts = stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
        if stat.S_ISDIR(info.st_mode):
            below = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                _require_roots(below, top / path, owner)
                yield ("dir", path, *facts, ""), directory
                yield from _walk(below, top, owner, f"{path}/")
            finally:
                os.close(below)
        elif stat.S_ISREG(info.st_mode):
            yield ("file", path, *facts, ""), directory
        elif stat.S_ISLNK(info.st_mode):
            yield ("link", path, *facts, os.readlink(name, dir_fd=directory)), directory


def _content(directory: int, name: str) -> bytes:
    with os.fdopen(os.open(name, _READ, dir_fd=directory), "rb") as file:
        return file.read(MAX_BYTES + 1)


def _same(directory: int, name: str, entry: _Entry, copy: Path) -> bool:
    kind, _, mode, uid, gid, target = entry
    try:
        info = os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    if kind == "link":
        return stat.S_ISLNK(info.st_mode) and os.readlink(name, dir_fd=directory) == target
    of_kind = stat.S_ISDIR(info.st_mode) if kind == "dir" else stat.S_ISREG(info.st_mode)
    if not of_kind or (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) != (mode, uid, gid):
        return False
    return kind == "dir" or _content(directory, name) == copy.read_bytes()


def _keep_aside(directory: int, name: str, place: Path) -> bool:
    """Keeps the file that stands in the way; a directory or a link of the same name has nothing that could be lost."""
    try:
        if not stat.S_ISREG(os.lstat(name, dir_fd=directory).st_mode):
            return False
        data = _content(directory, name)
    except FileNotFoundError:
        return False
    place.parent.mkdir(mode=0o700, exist_ok=True)
    write_temporary(place, data)
    fsync_directory(place.parent)
    return True


def _put(directory: int, name: str, entry: _Entry, copy: Path) -> None:
    kind, path, mode, uid, gid, target = entry
    if kind == "dir":
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=directory)
        descriptor = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        os.fsync(directory)
        return
    new = f".{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=directory)
    if kind == "link":
        os.symlink(target, new, dir_fd=directory)
    else:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        with os.fdopen(descriptor, "wb") as file:
            file.write(copy.read_bytes())
            file.flush()
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
    try:
        os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    except IsADirectoryError:
        os.unlink(new, dir_fd=directory)
        raise SaveRefused(f"{path} is a directory now, and was a file when the configuration was saved; move it away") from None
    os.fsync(directory)
