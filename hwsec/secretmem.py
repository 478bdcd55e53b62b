"""Holds secrets in memory that is not swapped or dumped, is wiped when closed, and cannot print itself.

memfd_secret(2) where the kernel has it: its pages are not in the kernel's own map, so that not even /proc/PID/mem shows
them. Elsewhere anonymous pages under mlock(2) and MADV_DONTDUMP.
"""

import contextlib
import ctypes
import mmap
import os
import resource
import sys
from types import TracebackType
from typing import NoReturn, Self

from .errors import SecretMemoryError

_SYS_MEMFD_SECRET = 447  # the same number on every architecture, Linux 5.14
_libc = ctypes.CDLL(None, use_errno=True)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc_usable_size.restype = ctypes.c_size_t
_libc.free.restype = None


class SecretBuffer:
    """`size` bytes of secret memory. Use it in a `with` block; on leaving it is wiped.

    `view` gives the bytes in place, for calls that read or fill a buffer; nothing here returns a copy.
    """

    __slots__ = ("_map", "_size", "_view")

    def __init__(self, size: int) -> None:
        """Raises SecretMemoryError: the kernel gives no memory of either kind (RLIMIT_MEMLOCK)."""
        self._size = size
        self._map = _secret_map(size)
        self._view = memoryview(self._map)[:size]

    @property
    def view(self) -> memoryview:
        """The bytes, readable and writable, until the buffer is closed."""
        return self._view

    def wipe(self) -> None:
        """Overwrites the bytes with zeros; the buffer stays usable."""
        self._view[:] = bytes(self._size)

    def close(self) -> None:
        """Wipes and gives the memory back. May be called twice.

        While somebody still holds a slice of `view`, the memory stays mapped: wiped, until the slice goes.
        """
        if self._map.closed:
            return
        with contextlib.suppress(ValueError):  # released by an earlier call, which has wiped
            self.wipe()
        with contextlib.suppress(BufferError):
            self._view.release()
            self._map.close()

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<secret of {self._size} bytes>"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")


def wipe_bytes(value: bytes) -> None:
    """Overwrites an immutable object that somebody else's interface has returned. Nobody else may hold it.

    It works where `id` is an address (CPython), and on objects that Python does not share: longer than one byte.
    """
    if sys.implementation.name == "cpython" and len(value) > 1:
        start = bytes.__basicsize__ - 1  # the last of the head's bytes is the zero behind the content
        ctypes.memset(id(value) + start, 0, len(value))


def overwrite_freed(size: int) -> None:
    """Overwrites what freed `bytes` of that size have left: temporaries of somebody else's library, which nobody can wipe.

    CPython gives a small object's memory to a later one of its size. As a rule the next one gets it; where a garbage collection
    came between, many others are given out first.
    """
    overwriting = [bytes(size) for _ in range(2048)]
    del overwriting


def overwrite_freed_blocks(size: int) -> None:
    """Overwrites what freed blocks of the C library's heap have left, if their size was about this many bytes.

    For temporaries of a library in another language, in this thread and just now: malloc(3) first gives a thread the blocks
    that it has freed last.
    """
    blocks = [_libc.malloc(ctypes.c_size_t(near)) for near in range(size - 16, size + 65, 16) for _ in range(32)]
    for block in blocks:
        if block is not None:
            ctypes.memset(block, 0, _libc.malloc_usable_size(ctypes.c_void_p(block)))
    for block in blocks:
        _libc.free(ctypes.c_void_p(block))


def _secret_map(size: int) -> mmap.mmap:
    descriptor = _libc.syscall(_SYS_MEMFD_SECRET, os.O_CLOEXEC)
    if descriptor >= 0:
        try:
            os.ftruncate(descriptor, size)
            return mmap.mmap(descriptor, size)
        except OSError as error:
            raise SecretMemoryError(f"no secret memory of {size} bytes: {error.strerror}; raise LimitMEMLOCK") from error
        finally:
            os.close(descriptor)
    try:
        area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise SecretMemoryError(f"no memory of {size} bytes: {error.strerror}") from error
    area.madvise(mmap.MADV_DONTDUMP)
    area.madvise(mmap.MADV_DONTFORK)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)) != 0:
        number = ctypes.get_errno()
        area.close()
        raise SecretMemoryError(f"cannot lock {size} bytes in memory: {os.strerror(number)}; raise LimitMEMLOCK")
    return area


def secret_memory_kind() -> str:
    """`memfd_secret` or `mlock`: what this kernel offers."""
    descriptor = _libc.syscall(_SYS_MEMFD_SECRET, os.O_CLOEXEC)
    if descriptor < 0:
        return "mlock"
    os.close(descriptor)
    return "memfd_secret"


def forbid_dumps() -> None:
    """Makes this process leave no core dump and refuse ptrace by its own user (prctl(2) PR_SET_DUMPABLE, RLIMIT_CORE)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pr_set_dumpable = 4
    if _libc.prctl(pr_set_dumpable, 0, 0, 0, 0) != 0:
        raise SecretMemoryError(f"prctl(PR_SET_DUMPABLE): {os.strerror(ctypes.get_errno())}")
