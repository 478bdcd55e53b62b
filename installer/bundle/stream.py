"""Reads the members of a bundle from its compressed bytes, with bounded memory, and judges each before its content.

The bytes come from a descriptor that only root can change; their digest was checked before.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

from .errors import BundleRefused
from .header import BLOCK, read_header, shown
from .judge import Entry, Judge, Manifest, read_manifest

MAX_WINDOW_BYTES = 8 * 1024 * 1024
"""The window that zstd may keep; `zstd -19` needs as much, `--long` and `--ultra` more."""
CHUNK_BYTES = 128 * 1024
MAX_END_BYTES = 20 * BLOCK
"""Zero bytes at the end of the archive: two blocks, and what tar fills up to a record."""

Content = Iterator[bytes]
Visit = Callable[[Entry, Content], None]
"""Is given each member after the manifest, with its content. What it leaves of the content is skipped."""


def read_bundle(file: BinaryIO, visit: Visit, expected: Manifest | None = None) -> Judge:
    """Reads a whole bundle.

    Args:
        file: of its compressed bytes, from the first.
        visit: called for each member in turn, the manifest among them.
        expected: the manifest that it must have, if it was read before.

    Returns:
        The judge, with the manifest and the room that the members take.

    Raises:
        BundleRefused: it breaks a rule. Members before that one were visited.
        OSError: reading failed.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    with decompressor.stream_reader(file, read_size=CHUNK_BYTES, read_across_frames=True, closefd=False) as stream:
        source = _Source(stream.read)
        try:
            return _read(source, visit, expected)
        except zstandard.ZstdError as error:
            raise BundleRefused(
                f"the bundle is not zstd with a window of at most {MAX_WINDOW_BYTES // 1024**2} MiB: {error}"
            ) from None


def _read(source: "_Source", visit: Visit, expected: Manifest | None) -> Judge:
    judge = Judge()
    while (header := read_header(source.exactly(BLOCK, "its end: two blocks of zeros"))) is not None:
        entry = judge.admit(header)
        where = f"all of member {shown(header.name)}"
        content: Content = source.pieces(entry.size, where)
        if judge.manifest is None:
            data = b"".join(content)
            judge.manifest = read_manifest(data)
            if expected is not None and judge.manifest != expected:
                raise BundleRefused("the bundle's manifest is not the one that was judged")
            content = iter((data,))
        visit(entry, content)
        for _ in content:
            pass
        if any(source.exactly(-entry.size % BLOCK, where)):
            raise BundleRefused(f"member {shown(header.name)}: the bytes after its content are not zero")
    source.end()
    judge.finish()
    return judge


class _Source:
    """The unpacked bytes, which come in pieces of any size."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def exactly(self, size: int, what: str) -> bytes:
        return b"".join(self.pieces(size, what))

    def pieces(self, size: int, what: str) -> Content:
        while size:
            piece = self._read(min(size, CHUNK_BYTES))
            if not piece:
                raise BundleRefused(f"the bundle ends before {what}")
            size -= len(piece)
            yield piece

    def end(self) -> None:
        """Reads the rest: a second block of zeros, and no more than tar writes."""
        size = BLOCK
        while piece := self._read(CHUNK_BYTES):
            size += len(piece)
            if size > MAX_END_BYTES or any(piece):
                raise BundleRefused("bytes come after the end of the archive")
        if size < 2 * BLOCK:
            raise BundleRefused("the bundle ends before its end: two blocks of zeros")
