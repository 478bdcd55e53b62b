"""Reads a license token from a file and replaces it; a crash at any moment leaves the old token or the new one.

A file is replaced by renaming a new one over it. Where that cannot be (the directory may not be written, the file is a mount
point, its owner could not be kept) the token is written in place, in an order that never leaves less than one whole token:

1. A copy of the new token is appended, at a multiple of 4,096 bytes, so that no block of the old token is written but for the
   line breaks that fill up the last one. fsync. Until here the old token counts, from here on the copy.
2. The new token is written over the beginning. fsync.
3. The file is cut behind it. fsync. Then it is read again.

`token_in` finds the token that counts after a crash between any two of these steps, and within one.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Hashable, Iterator

from ..bounds import MAX_TOKEN_CHARS
from .policy import TokenFileError

_BLOCK_BYTES = 4096
TOKEN_READ_BYTES = MAX_TOKEN_CHARS + 256
"""What is read of a source that should hold a token: enough to see that it is too long."""
_READ_BYTES = 128 * 1024
_SECTOR_BYTES = 512
_BOM = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n\v\f"
# A block that was never written before a power cut reads as zeros.
_OLD_AND_FILL = re.compile(rb"([!-~]+)(?:\r?\n|\0)[\n\0]+")
_COPY = re.compile(rb"\n([!-~]+)\n\Z")

_NOT_BY_RENAME = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV, errno.ENAMETOOLONG})
"""Errors of the directory or of the rename that say nothing about writing to the file itself."""


def token_in(data: bytes) -> str:
    """The token in the content of a file, without byte order mark and white space around; what is not ASCII becomes U+FFFD."""
    data = data.removeprefix(_BOM)
    return _text(_after_a_crash(data) or data)


def _after_a_crash(data: bytes) -> bytes | None:
    """The token that counts in what an interrupted writing in place left; None for any other content."""
    copy = _COPY.search(data)
    if copy is not None and copy.start(1) >= _BLOCK_BYTES and copy.start(1) % _BLOCK_BYTES == 0:
        return copy[1]
    old = _OLD_AND_FILL.match(data)
    if old is not None and old.end() < len(data) and old.end() % _SECTOR_BYTES == 0:
        return old[1]
    if old is not None and old.end() == len(data) and b"\0" in old[0]:
        return old[1]
    return None


def _text(data: bytes) -> str:
    return data.strip(_BLANKS).decode("ascii", "replace")


class TokenFile:
    """A license token kept in a file: read for a validation, replaced when a newer one comes.

    A symbolic link is followed. Owner, group, mode, access list and other attributes of the file are kept.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def read(self, *, complete: bool = True) -> str:
        """The token, without byte order mark and white space around; empty if there is none.

        Args:
            complete: what an interrupted replacement left is completed on the way, where the file may be written.

        Raises:
            TokenFileError: the file cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                data = file.read(_READ_BYTES)
        except OSError as error:
            raise TokenFileError(error.errno, error.strerror, self.path) from None
        left = _after_a_crash(data)
        if left is None:
            return token_in(data)
        token = _text(left)
        if complete:
            with contextlib.suppress(TokenFileError):
                self.replace(token, token)
        return token

    def replace(self, old: str, new: str) -> None:
        """Puts `new` in the place of `old`, durably. Usable as a `RefreshCallback`.

        A file that does not hold `old` any more is left alone: somebody else has replaced it.

        Raises:
            TokenFileError: the file cannot be written; it names the file, not the temporary one.
        """
        try:
            with _opened_directory(os.path.realpath(self.path, strict=True)) as (directory, name):
                _replace(directory, name, old, new)
        except OSError as error:
            raise TokenFileError(error.errno, error.strerror, self.path) from None

    def obstacle(self) -> Hashable:
        """What a replacement depends on, as far as it can be seen: a change says that one may succeed that failed before."""
        found: list[Hashable] = [os.geteuid(), os.getegid(), tuple(os.getgroups())]
        target = os.path.realpath(self.path)
        for path in (target, os.path.dirname(target)):
            try:
                info, flags = os.stat(path), os.statvfs(path).f_flag
            except OSError as error:
                found.append(error.errno)
            else:
                found.append((info.st_dev, info.st_ino, info.st_mode, info.st_uid, info.st_gid, flags))
        return tuple(found)


@contextlib.contextmanager
def _opened_directory(target: str) -> Iterator[tuple[int, str]]:
    """The directory of a file, which stays the same one whatever happens to the path, and the file's name in it."""
    directory, name = os.path.split(target)
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor, name
    finally:
        os.close(descriptor)


def _replace(directory: int, name: str, old: str, new: str) -> None:
    try:
        _by_rename(directory, name, old, new)
    except OSError as by_rename:
        if by_rename.errno not in _NOT_BY_RENAME:
            raise
        try:
            _in_place(directory, name, old, new)
        except OSError as in_place:
            same = by_rename.strerror == in_place.strerror
            why = f"{in_place.strerror}" if same else f"{by_rename.strerror}; in place: {in_place.strerror}"
            raise OSError(in_place.errno, why) from None


@contextlib.contextmanager
def _opened_file(directory: int, name: str, flags: int) -> Iterator[tuple[int, os.stat_result, bytes]]:
    """Descriptor, status and content of the file."""
    # O_NONBLOCK: a pipe under this name must not hold the till.
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        yield descriptor, info, _content(descriptor)
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    parts: list[bytes] = []
    read = 0
    while read < _READ_BYTES and (part := os.pread(descriptor, _READ_BYTES - read, read)):
        parts.append(part)
        read += len(part)
    return b"".join(parts)


def _write(descriptor: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


# By rename


def _by_rename(directory: int, name: str, old: str, new: str) -> None:
    with _opened_file(directory, name, os.O_RDONLY) as (source, info, content):
        if token_in(content) != old:
            return
        temporary = f"{name}.{secrets.token_hex(8)}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            try:
                _write(descriptor, f"{new}\n".encode("ascii"), 0)
                _take_attributes(descriptor, source, info)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
    # A directory that may be written and not read cannot be synchronized: after a crash either file may be there.
    with contextlib.suppress(PermissionError):
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fsync(readable)
        finally:
            os.close(readable)


def _take_attributes(descriptor: int, source: int, info: os.stat_result) -> None:
    """Gives a new file owner, group, mode and extended attributes of the one that it replaces."""
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (info.st_uid, info.st_gid):
        try:
            os.fchown(descriptor, info.st_uid, info.st_gid)
        except PermissionError:
            owner = f"it belongs to uid {info.st_uid}, gid {info.st_gid}, and a new file would belong to uid {mine.st_uid}"
            raise OSError(errno.EPERM, owner) from None
    os.fchmod(descriptor, stat.S_IMODE(info.st_mode))
    try:
        names = os.listxattr(source)
    except OSError:
        names = []  # this file system has no attributes
    for attribute in names:
        try:
            os.setxattr(descriptor, attribute, os.getxattr(source, attribute))
        except OSError as error:
            # The kernel gives security labels itself; an access list decides who may read the file.
            if attribute.startswith("system.posix_acl"):
                raise OSError(errno.EPERM, f"its access list cannot be kept: {error.strerror}") from None


# In place


def _in_place(directory: int, name: str, old: str, new: str) -> None:
    with _opened_file(directory, name, os.O_RDWR) as (descriptor, _info, _before):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EAGAIN, "another process writes to it at the moment") from None
        content = _content(descriptor)
        if token_in(content) != old:
            return
        line = f"{new}\n".encode("ascii")
        _append_copy(descriptor, line)
        _write(descriptor, line, 0)
        os.fsync(descriptor)
        os.ftruncate(descriptor, len(line))
        os.fsync(descriptor)
        if _content(descriptor) != line:
            raise OSError(errno.EIO, "it does not hold what was written to it")


def _append_copy(descriptor: int, line: bytes) -> None:
    size = os.fstat(descriptor).st_size
    # At least two line breaks, by which the old token is found if the copy is not whole.
    fill = -(max(size, len(line)) + 2) % _BLOCK_BYTES + max(size, len(line)) + 2 - size
    try:
        _write(descriptor, b"\n" * fill + line, size)
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise
