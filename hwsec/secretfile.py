"""Reads files with secrets into secret memory: no copy stays in ordinary memory. `common.files` writes them from there."""

import os
from pathlib import Path

from .secretmem import SecretBuffer


def read_secret_file(path: Path, maximum: int) -> SecretBuffer:
    """The file's content in secret memory, cut off after `maximum` bytes, one zero if it is empty; the caller closes it.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        size = min(max(os.fstat(file.fileno()).st_size, 1), maximum)
        buffer = SecretBuffer(size)
        try:
            filled = 0
            while filled < size and (more := file.readinto(buffer.view[filled:])):
                filled += more
        except BaseException:
            buffer.close()
            raise
        return buffer
