"""Judges each member of a bundle before anything is written. Nothing here performs IO.

Every rule of docs/bundle-format.md is here or in header.py; unpack.py relies on them and holds its own against links besides.
"""

import unicodedata
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from common.plain import msgspec_text

from .errors import BundleRefused
from .header import Header, Kind, shown

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4096
MAX_ENTRIES = 50_000
MAX_BYTES = 4 * 1024**3
"""Bytes of all files of a bundle together, unpacked."""
MAX_DEPTH = 16
"""Names in a path."""
_ALLOCATION = 4096
"""What a file system gives out at the least; by it the room is reckoned."""


class Manifest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a bundle says of itself, in its first member. The signed target has the last word on the first four.

    Attributes:
        v: version of the format.
        product: what it installs.
        version: of the product.
        build_id: of the build.
        entries: members after the manifest.
        bytes: of all files after the manifest together.
    """

    v: Literal[1]
    product: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
    version: Annotated[str, Meta(min_length=1, max_length=64)]
    build_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    entries: Annotated[int, Meta(ge=0, le=MAX_ENTRIES)]
    bytes: Annotated[int, Meta(ge=0, le=MAX_BYTES)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A member that may be unpacked.

    Attributes:
        parts: the names of its path; at least one, none of them ".", ".." or with a slash.
        kind: what it is.
        size: bytes of a file.
        mode: 0644 or 0755.
        mtime: seconds since 1970.
        target: of a symbolic link; it leads to a place in the bundle.
    """

    parts: tuple[str, ...]
    kind: Kind
    size: int
    mode: int
    mtime: int
    target: str


def read_manifest(data: bytes) -> Manifest:
    """Reads the first member.

    Raises:
        BundleRefused: it is not a manifest.
    """
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        # The text can name a member, whose characters the bundle chose.
        raise BundleRefused(f"{MANIFEST} is not a manifest: {ascii(msgspec_text(str(error)))[1:-1][:200]}") from None


class Judge:
    """Judges one bundle, member by member, in its order.

    Attributes:
        manifest: None until it came.
        blocks: bytes that the members take on a disk, reckoned in whole blocks.
    """

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.blocks = 0
        self._entries = 0
        self._bytes = 0
        self._kinds: dict[str, Kind] = {}
        self._folded: dict[str, str] = {}

    def admit(self, header: Header) -> Entry:
        """Returns what may be unpacked.

        Raises:
            BundleRefused: the member breaks a rule.
        """
        entry = self._judged(header)
        if not self._kinds:
            if header.name != MANIFEST or entry.kind is not Kind.FILE or entry.size > MAX_MANIFEST_BYTES:
                raise BundleRefused(f"the first member must be the file {MANIFEST}, of at most {MAX_MANIFEST_BYTES} bytes")
        else:
            if self.manifest is None:
                raise ValueError("the manifest comes before the second member")
            self._entries += 1
            self._bytes += entry.size
            if self._entries > self.manifest.entries:
                raise BundleRefused(f"more members than the {self.manifest.entries} that {MANIFEST} says")
            if self._bytes > self.manifest.bytes:
                raise BundleRefused(f"files have more bytes than the {self.manifest.bytes} that {MANIFEST} says")
        self._kinds[header.name] = entry.kind
        self._folded[_folded(header.name)] = header.name
        self.blocks += max(1, -(-entry.size // _ALLOCATION)) * _ALLOCATION
        return entry

    def finish(self) -> Manifest:
        """Returns the manifest of a bundle that is complete.

        Raises:
            BundleRefused: members are missing.
        """
        if self.manifest is None:
            raise BundleRefused("the bundle is empty")
        if (self._entries, self._bytes) != (self.manifest.entries, self.manifest.bytes):
            raise BundleRefused(
                f"the bundle has {self._entries} members with {self._bytes} bytes; "
                f"{MANIFEST} says {self.manifest.entries} with {self.manifest.bytes}"
            )
        return self.manifest

    def _judged(self, header: Header) -> Entry:
        where = f"member {shown(header.name)}"
        parts = _parts(header.name, where)
        if (earlier := self._folded.get(_folded(header.name))) is not None:
            if earlier == header.name:
                raise BundleRefused(f"{where} comes twice")
            raise BundleRefused(f"{where} differs from {shown(earlier)} only by upper and lower case")
        if len(parts) > 1:
            parent = "/".join(parts[:-1])
            if self._kinds.get(parent) is not Kind.DIRECTORY:
                what = f"a {self._kinds[parent]}" if parent in self._kinds else "no member before it"
                raise BundleRefused(f"{where}: its directory {shown(parent)} is {what}; a directory comes before what is in it")
        if header.kind is Kind.SYMLINK:
            _check_target(header.target, len(parts) - 1, where)
        mode = 0o755 if header.executable or header.kind is Kind.DIRECTORY else 0o644
        return Entry(parts, header.kind, header.size, mode, header.mtime, header.target)


def _parts(name: str, where: str) -> tuple[str, ...]:
    parts = tuple(name.split("/"))
    if name.startswith("/"):
        raise BundleRefused(f"{where}: an absolute path; make the bundle from within its directory")
    if any(part in ("", ".", "..") for part in parts):
        raise BundleRefused(f"{where}: a path has no empty part, no '.' and no '..'")
    if len(parts) > MAX_DEPTH:
        raise BundleRefused(f"{where}: more than {MAX_DEPTH} names in a path")
    for part in parts:
        _check_name(part, where)
    return parts


def _check_name(part: str, where: str) -> None:
    if any(unicodedata.category(character)[0] == "C" for character in part) or "\\" in part:
        raise BundleRefused(f"{where}: a name with a control character, an invisible one, or a backslash")
    if unicodedata.normalize("NFC", part) != part:
        raise BundleRefused(f"{where}: a name that is not in Unicode's form NFC; two names could look alike")


def _check_target(target: str, depth: int, where: str) -> None:
    """A target is any number of '..' up to the bundle's top, then names.

    A '..' after a name would count from where a link leads, not from where it is written: with two links, out of the bundle.
    """
    parts = target.split("/")
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    if up > depth or any(part in ("", ".", "..") for part in parts[up:]):
        raise BundleRefused(
            f"{where}: its target {shown(target)} is not allowed; a target is relative, stays in the bundle, and has '..' only "
            "at its beginning"
        )
    for part in parts[up:]:
        _check_name(part, where)


def _folded(name: str) -> str:
    # Folding can leave a name in another form, so it is brought to one form afterward.
    return unicodedata.normalize("NFC", name.casefold())
