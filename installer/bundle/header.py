"""Reads one tar header, of a closed part of ustar (POSIX.1-1988, "ustar Interchange Format"). Nothing here performs IO.

Python's `tarfile` reads many dialects and guesses where a header is unclear; a root process reads one, and refuses the rest.
"""

from dataclasses import dataclass
from enum import StrEnum

from .errors import BundleRefused

BLOCK = 512
"""Bytes of a header; a file's content is filled up to a multiple of it."""
_ZERO = bytes(BLOCK)
_MAGIC = b"ustar\x0000"
_SPECIAL_BITS = 0o7000


class Kind(StrEnum):
    """What a member is. Nothing else can be one."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"


_KINDS = {b"0": Kind.FILE, b"5": Kind.DIRECTORY, b"2": Kind.SYMLINK}
_REFUSED = {
    b"\0": "a member without a type, of a tar from before 1988",
    b"1": "a hard link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"7": "a contiguous file",
    b"S": "a sparse file",
    b"g": "a global pax header",
    b"x": "a pax header",
    b"K": "a GNU long link",
    b"L": "a GNU long name",
}


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose every field has a form that we know. What it says is judged later.

    Attributes:
        name: the path as it is written, without the slash at the end of a directory's name.
        kind: what the member is.
        size: bytes of content that follow.
        executable: its owner may execute it.
        mtime: seconds since 1970.
        target: of a symbolic link; empty for the others.
    """

    name: str
    kind: Kind
    size: int
    executable: bool
    mtime: int
    target: str


def read_header(block: bytes) -> Header | None:
    """Reads a block of 512 bytes; None if all of them are zero, as at the end of the archive.

    Raises:
        BundleRefused: it is not a header, or it has a field that the format does not allow.
    """
    if block == _ZERO:
        return None
    fields = _Fields(block)
    if block[257:265] != _MAGIC:
        raise BundleRefused("a header is not ustar; make the bundle with: tar --format=ustar")
    if fields.number(148, 8, "checksum") != sum(block[:148]) + 8 * 0x20 + sum(block[156:]):
        raise BundleRefused("a header's checksum is wrong: the bundle is damaged")
    name = _path(fields)
    where = f"member {shown(name)}"
    flag = block[156:157]
    if flag not in _KINDS:
        raise BundleRefused(
            f"{where} is {_REFUSED.get(flag, 'of an unknown type')}; a bundle has files, directories and symbolic links"
        )
    kind = _KINDS[flag]
    mode = fields.number(100, 8, "mode")
    if mode & _SPECIAL_BITS or mode > 0o7777:
        raise BundleRefused(f"{where} has mode {mode:04o}; setuid, setgid and sticky bits are not allowed")
    if fields.number(108, 8, "uid") or fields.number(116, 8, "gid"):
        raise BundleRefused(f"{where} does not belong to root; make the bundle with: tar --owner=0 --group=0 --numeric-owner")
    for at, size, what in ((265, 32, "user name"), (297, 32, "group name")):
        if fields.text(at, size, what) not in ("", "root"):
            raise BundleRefused(f"{where} has the {what} of somebody; only root owns what is installed")
    if fields.number(329, 8, "device") or fields.number(337, 8, "device"):
        raise BundleRefused(f"{where} has a device number, and is no device")
    if any(block[500:]):
        raise BundleRefused(f"{where}: bytes after the end of its header are not zero")
    size = fields.number(124, 12, "size")
    if size and kind is not Kind.FILE:
        raise BundleRefused(f"{where} is a {kind} and has content")
    target = fields.text(157, 100, "link target")
    if (kind is Kind.SYMLINK) != bool(target):
        raise BundleRefused(f"{where} is a {kind} " + ("with" if target else "without") + " a link target")
    if name.endswith("/"):
        if kind is not Kind.DIRECTORY:
            raise BundleRefused(f"{where} is a {kind}, and its name ends with a slash")
        name = name[:-1]
    return Header(name, kind, size, bool(mode & 0o100), fields.number(136, 12, "time"), target)


def shown(path: str) -> str:
    """Returns a path for an error: quoted, printable and short, whatever its characters are."""
    return ascii(path if len(path) <= 100 else path[:97] + "...")


class _Fields:
    """The fields of one block."""

    def __init__(self, block: bytes) -> None:
        if len(block) != BLOCK:
            raise ValueError(f"a block has {BLOCK} bytes, not {len(block)}")
        self._block = block

    def text(self, at: int, size: int, what: str) -> str:
        raw, _, rest = self._block[at : at + size].partition(b"\0")
        if any(rest):
            raise BundleRefused(f"a header's {what} has bytes after its end")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise BundleRefused(f"a header's {what} is not UTF-8") from None

    def number(self, at: int, size: int, what: str) -> int:
        """Octal digits, ended by NUL or space; empty is 0. GNU's binary numbers are refused."""
        raw = self._block[at : at + size].rstrip(b" \0")
        if not raw:
            return 0
        if any(digit not in b"01234567" for digit in raw):
            raise BundleRefused(f"a header's {what} is not an octal number")
        if len(raw) == size:
            raise BundleRefused(f"a header's {what} has no end")
        return int(raw, 8)


def _path(fields: _Fields) -> str:
    name, prefix = fields.text(0, 100, "name"), fields.text(345, 155, "prefix")
    return f"{prefix}/{name}" if prefix else name
