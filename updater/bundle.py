"""Reads an update bundle: a tar archive that is read once, from its beginning to its end, from a descriptor.

The form is narrow on purpose, since the archive may come from anybody's memory stick: POSIX ustar, regular files with these
names, each once, the package last; folders are skipped.

    directive.jws, key-set.jws      optional
    metadata/<name>.json            the repository's metadata, with every root
    package                         the last member

`tar --format=ustar -cf update.bundle directive.jws key-set.jws metadata package` makes one. Nothing in it is believed: what it
brings is verified exactly as what the repository brings.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ipc.updatermessages import MAX_DIRECTIVE_CHARS, MAX_KEY_SET_CHARS, MAX_PACKAGE_BYTES, UpdaterCode
from updatetrust.metadatafiles import MAX_ROLE_BYTES, MAX_ROLES, MAX_ROOTS, MAX_TOTAL_BYTES

from .failures import UpdateFailed

BLOCK = 512
MAX_FILES = MAX_ROOTS + MAX_ROLES + 8
"""Before the package."""
MAX_FOLDERS = 4
"""`./` and `metadata/`, and each once more."""
COPY_BYTES = 256 * 1024
DIRECTIVE, KEY_SET, PACKAGE, FOLDER = "directive.jws", "key-set.jws", "package", "metadata/"
_METADATA = re.compile(r"metadata/[A-Za-z0-9%_][A-Za-z0-9%._~-]{0,200}\.json")
_OCTAL = re.compile(rb"[0-7]{1,11}[ \0]{0,2}")


class Member(NamedTuple):
    """One entry of an archive.

    Attributes:
        name: with its folder.
        size: bytes.
        folder: whether it is a folder.
    """

    name: str
    size: int
    folder: bool


def parse_header(block: bytes) -> Member | None:
    """The entry that a header describes; None for the block of zeros at the end.

    Raises:
        UpdateFailed: BUNDLE; it is not ustar, or an entry of another kind.
    """
    if len(block) != BLOCK:
        raise _not_a_bundle("it ends too early")
    if block == bytes(BLOCK):
        return None
    if block[257:263] != b"ustar\0" or block[263:265] != b"00":
        raise _not_a_bundle("it is not a tar archive of the format ustar")
    if _octal(block[148:156]) != sum(block[:148]) + 8 * 0x20 + sum(block[156:]):
        raise _not_a_bundle("a checksum in it is wrong")
    kind = block[156:157]
    if kind not in (b"0", b"\0", b"5"):
        raise _not_a_bundle("it has an entry that is neither a file nor a folder")
    try:
        prefix, name = (part.partition(b"\0")[0].decode("ascii") for part in (block[345:500], block[:100]))
    except UnicodeDecodeError:
        raise _not_a_bundle("it has a name that is not ASCII") from None
    return Member(f"{prefix}/{name}" if prefix else name, _octal(block[124:136]), kind == b"5")


def _octal(field: bytes) -> int:
    if not _OCTAL.fullmatch(field):
        raise _not_a_bundle("a number in it is not octal")
    return int(field.rstrip(b" \0"), 8)


def _not_a_bundle(why: str) -> UpdateFailed:
    return UpdateFailed(UpdaterCode.BUNDLE, f"the file is not an update bundle: {why}")


@dataclass(frozen=True, slots=True)
class Papers:
    """What a bundle has before its package.

    Attributes:
        directive: JWS; None if it has none.
        key_set: key sets, one a line; None if it has none.
        metadata: by name without folder.
        package_at: where the package begins, bytes from the beginning.
        package_size: bytes of the package.
    """

    directive: str | None
    key_set: str | None
    metadata: dict[str, bytes]
    package_at: int
    package_size: int


class Bundle:
    """An open bundle.

    Args:
        descriptor: of a regular file, open for reading; stays the caller's. Its position is not used and not changed.

    Raises:
        UpdateFailed: BUNDLE; it is something else.
    """

    def __init__(self, descriptor: int) -> None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_a_bundle("it is not a regular file")
        self._descriptor = descriptor

    def papers(self) -> Papers:
        """Reads everything before the package.

        Raises:
            UpdateFailed: BUNDLE.
            OSError: the file cannot be read.
        """
        at, seen, files, total, folders = 0, set[str](), dict[str, bytes](), 0, 0
        while (member := parse_header(self._read(at, BLOCK))) is not None:
            at += BLOCK
            name = member.name.removeprefix("./")
            if member.folder:
                folders += 1
                if name not in (FOLDER, "") or member.size:
                    raise _not_a_bundle(f"it has the folder {ascii(name)[:100]}" + (" with content" if member.size else ""))
                if folders > MAX_FOLDERS:  # a file of nothing else would be read to its end
                    raise _not_a_bundle(f"it has more than {MAX_FOLDERS} folders")
                continue
            if name in seen:
                raise _not_a_bundle(f"it has {ascii(name)[:100]} twice")
            seen.add(name)
            if name == PACKAGE:
                if not 0 < member.size <= MAX_PACKAGE_BYTES:
                    raise _not_a_bundle("its package is empty or too large")
                return self._papers(files, at, member.size)
            limit = {DIRECTIVE: MAX_DIRECTIVE_CHARS + 1, KEY_SET: MAX_KEY_SET_CHARS + 1}.get(name, MAX_ROLE_BYTES)
            total += member.size
            if name not in (DIRECTIVE, KEY_SET) and not _METADATA.fullmatch(name):
                raise _not_a_bundle(f"it has {ascii(name)[:100]}, which no bundle has")
            if member.size > limit or total > MAX_TOTAL_BYTES or len(seen) > MAX_FILES:
                raise _not_a_bundle(f"{name} is too large, or there are too many files before the package")
            files[name] = self._read(at, member.size)
            if len(files[name]) != member.size:
                raise _not_a_bundle("it ends too early")
            at += -(-member.size // BLOCK) * BLOCK
        raise _not_a_bundle("it has no package")

    def package(self, papers: Papers) -> Iterator[bytes]:
        """The package's bytes, read once.

        Raises:
            UpdateFailed: BUNDLE; the file ends too early.
            OSError: it cannot be read.
        """
        at, left = papers.package_at, papers.package_size
        while left:
            data = self._read(at, min(COPY_BYTES, left))
            if not data:
                raise _not_a_bundle("it ends too early")
            at += len(data)
            left -= len(data)
            yield data

    def _papers(self, files: dict[str, bytes], at: int, size: int) -> Papers:
        texts = {}
        for name in (DIRECTIVE, KEY_SET):
            if name in files:
                try:
                    texts[name] = files.pop(name).decode("ascii").strip()
                except UnicodeDecodeError:
                    raise _not_a_bundle(f"{name} is not ASCII") from None
        metadata = {name.removeprefix(FOLDER): data for name, data in files.items()}
        return Papers(texts.get(DIRECTIVE), texts.get(KEY_SET), metadata, at, size)

    def _read(self, at: int, size: int) -> bytes:
        whole = b""
        while len(whole) < size and (data := os.pread(self._descriptor, size - len(whole), at + len(whole))):
            whole += data
        return whole
