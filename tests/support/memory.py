"""Looks for keys in another process, in the memory that root can read and in a core dump, in all forms that keys take."""

import base64
import contextlib
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
_LETTERS = re.compile(rb"[A-Za-z0-9+/_-]{14,}")
_OVERLAP = 128  # more than the longest form that is looked for: one that spans two pages is found


def _base64_cores(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What stands in a base64 text wherever `data` is part of what was encoded: three alignments, two alphabets."""
    for before in range(3):
        first, end = -(-8 * before // 6), 8 * (before + len(data)) // 6
        padded = bytes(before) + data
        yield f"base64 at {before}", base64.b64encode(padded)[first:end]
        yield f"base64url at {before}", base64.urlsafe_b64encode(padded)[first:end]


def forms(value: bytes) -> dict[str, bytes]:
    """Texts and bytes by which a value of 32 bytes is known again, even if only one half of it is left.

    A freed piece of memory loses its first 16 bytes to the allocator, and keeps the rest.
    """
    found: dict[str, bytes] = {}
    middle = len(value) // 2
    for name, half in (("first half", value[:middle]), ("second half", value[middle:])):
        found[f"{name}, raw"] = half
        found[f"{name}, reversed"] = half[::-1]  # OpenSSL's big numbers
        found[f"{name}, hex"] = half.hex().encode()
        found[f"{name}, HEX"] = half.hex().upper().encode()
        found.update((f"{name}, {form}", text) for form, text in _base64_cores(half))
    number, digits = int.from_bytes(value, "big"), []
    while number:
        digits.append(struct.pack("<I", number & (1 << 30) - 1))
        number >>= 30
    found["as a number of Python"] = b"".join(digits[:5])
    return found


FRAGMENT = 12
"""So many bytes in a row of a value are no accident."""


def fragments(value: bytes) -> dict[str, bytes]:
    """As `forms`, for every piece of `FRAGMENT` bytes of a value: whatever part of it is left."""
    found: dict[str, bytes] = {}
    for start in range(len(value) - FRAGMENT + 1):
        piece, name = value[start : start + FRAGMENT], f"bytes {start} to {start + FRAGMENT}"
        found[f"{name}, raw"] = piece
        found[f"{name}, reversed"] = piece[::-1]
        found[f"{name}, hex"] = piece.hex().encode()
        found[f"{name}, HEX"] = piece.hex().upper().encode()
        found.update((f"{name}, {form}", text) for form, text in _base64_cores(piece))
    return found


@dataclass
class Search:
    """Looks for values in one process's memory again and again; no value is looked for twice in what has not changed.

    Attributes:
        values: by name; may grow.
        forms_of: what to look for.
    """

    values: dict[str, bytes]
    forms_of: Callable[[bytes], dict[str, bytes]] = forms
    _seen: set[int] = field(default_factory=set)
    _known: set[bytes] = field(default_factory=set)

    def lingering(self, areas: Iterable[bytes]) -> list[str]:
        """Names and forms of the values that are there and, if they were looked for before, were not there then."""
        added = {value for value in self.values.values() if value not in self._known}
        pieces = list(_pieces(areas))
        marks = [hash(piece) for piece in pieces]
        changed = [piece for piece, mark in zip(pieces, marks, strict=True) if mark not in self._seen]
        found = self._in(changed, self._known)
        if added:
            found |= self._in(pieces, added)
        self._seen.update(marks)
        self._known |= added
        return [f"{name}: {form}" for name, value in self.values.items() for form in found.get(value, ())]

    def _in(self, pieces: list[bytes], values: set[bytes]) -> dict[bytes, list[str]]:
        whole = b"\0".join(pieces)
        # What is written with letters is looked for only where there are enough of them in a row, which is little.
        letters = b"\0".join(_LETTERS.findall(whole))
        return {
            value: [
                form for form, text in self.forms_of(value).items() if text in (letters if _LETTERS.fullmatch(text) else whole)
            ]
            for value in values
        }


def _pieces(areas: Iterable[bytes]) -> Iterator[bytes]:
    """The pages, each once, and each with the beginning of the next."""
    given: set[int] = set()
    for area in areas:
        for start in range(0, len(area), PAGE):
            piece = area[start : start + PAGE + _OVERLAP]
            if (mark := hash(piece)) not in given:
                given.add(mark)
                yield piece


def memory_of(pid: int) -> list[bytes]:
    """All memory of a process that root can read through /proc, area by area."""
    areas = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, access, *_rest = line.split()
            if access.startswith("r"):
                first, end = (int(address, 16) for address in span.split("-"))
                with contextlib.suppress(OSError):  # secret memory, and the kernel's own pages
                    areas.append(os.pread(memory.fileno(), end - first, first))
    return areas


def core_of(pid: int) -> list[bytes]:
    """A core dump as gdb takes it, with what the process asked to leave out."""
    with tempfile.TemporaryDirectory() as directory:
        prefix = Path(directory) / "core"
        done = subprocess.run(["gcore", "-a", "-o", str(prefix), str(pid)], capture_output=True, text=True, check=False)
        core = prefix.with_name(f"core.{pid}")
        assert core.exists(), done.stdout + done.stderr
        return [core.read_bytes()]
