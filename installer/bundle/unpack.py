"""Unpacks a judged bundle into a directory, with descriptors: no name is followed that somebody else could have placed.

Files belong to the process's user, who is root. When `unpack` returns, everything is on the disk.
"""

import ctypes
import os
from collections.abc import Callable
from typing import BinaryIO

from common.files import no_trace

from .errors import BundleRefused
from .header import Kind
from .judge import Entry, Judge, Manifest
from .stream import Content, read_bundle

_libc = ctypes.CDLL(None, use_errno=True)  # Python has no call of syncfs(2)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _skip(_entry: Entry, _content: Content) -> None:
    pass


def judge_bundle(file: BinaryIO) -> Judge:
    """Reads a whole bundle and writes nothing.

    Raises:
        BundleRefused: it breaks a rule.
        OSError: reading failed.
    """
    file.seek(0)
    return read_bundle(file, _skip)


def unpack(file: BinaryIO, directory: int, manifest: Manifest, trace: Callable[[str], None] = no_trace) -> None:
    """Unpacks a bundle that `judge_bundle` let pass; every rule is checked again.

    Args:
        file: the same bundle.
        directory: descriptor of an empty directory of this user.
        manifest: what `judge_bundle` found in it.
        trace: called after each write, with what was written.

    Raises:
        BundleRefused: it breaks a rule, or is not the bundle that was judged.
        OSError: writing failed. The directory holds a part.
    """
    if os.listdir(directory):
        raise BundleRefused("the directory to unpack into is not empty")
    directories: list[Entry] = []

    def write(entry: Entry, content: Content) -> None:
        parent = _open_within(directory, entry.parts[:-1])
        try:
            _write(parent, entry, content)
        finally:
            os.close(parent)
        if entry.kind is Kind.DIRECTORY:
            directories.append(entry)
        trace(f"{entry.kind}: {'/'.join(entry.parts)}")

    file.seek(0)
    read_bundle(file, write, manifest)
    for entry in reversed(directories):
        descriptor = _open_within(directory, entry.parts)
        try:
            # Last, because writing into a directory changes its time.
            os.utime(descriptor, (entry.mtime, entry.mtime))
        finally:
            os.close(descriptor)
    _sync(directory)
    trace("slot: synced")


def _sync(directory: int) -> None:
    """Has the whole file system written: one wait, where fsync(2) of each file waits for the disk each time.

    Since Linux 5.8, errors of the disk are reported here as by fsync(2).
    """
    if _libc.syncfs(directory) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _open_within(directory: int, parts: tuple[str, ...]) -> int:
    """Opens a directory below another, one name at a time; a symbolic link on the way is an error."""
    descriptor = os.open(".", _DIRECTORY, dir_fd=directory)
    for part in parts:
        try:
            below = os.open(part, _DIRECTORY, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def _write(parent: int, entry: Entry, content: Content) -> None:
    name = entry.parts[-1]
    if entry.kind is Kind.SYMLINK:
        os.symlink(entry.target, name, dir_fd=parent)
        return
    if entry.kind is Kind.DIRECTORY:
        os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            os.fchmod(descriptor, entry.mode)
        finally:
            os.close(descriptor)
        return
    with os.fdopen(os.open(name, _FILE, 0o600, dir_fd=parent), "wb", buffering=0) as file:
        for piece in content:
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
        os.fchmod(file.fileno(), entry.mode)
        os.utime(file.fileno(), (entry.mtime, entry.mtime))
