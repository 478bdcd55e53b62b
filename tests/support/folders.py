"""Gives tests a folder outside of pytest's own, short enough for sockets, that goes with the block or with the run."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory, if there is one: for tests of order and time, which a slow disk would only hold up.

    Where the run has a folder of its own (TMPDIR, see scripts/test), it is in there, and goes with the run however that ends.
    """
    place = None if "TMPDIR" in os.environ or not MEMORY.is_dir() else MEMORY
    directory = Path(tempfile.mkdtemp(prefix="la-", dir=place))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
