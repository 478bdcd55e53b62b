"""Declares what the update repository says of a package: the signed `custom` of a TUF target. Pure.

The members of `custom` are in `Custom`, all of them and no others. Path, length and digest are TUF's own.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from common.plain import msgspec_text
from common.text import forbidden_in
from contracts.directive import BuildId, PackageLength, Product, TargetPath, VersionText
from contracts.exchange import Hash, Time

MAX_TARGETS_PER_ROLE = 1000
"""Verifying 10,000 costs 0.7 s on a till at each look."""
MAX_HARDWARE = 32
MAX_NOTES_CHARS = 4000

HARDWARE_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}\Z"
Hardware = Annotated[str, Meta(pattern=HARDWARE_PATTERN)]
RESERVED_HARDWARE = frozenset({"any", "all"})
"""Words that somebody might take for a wildcard. There is none: a package names each kind of machine that it was tested on."""


class MalformedTarget(Exception):
    """The repository's signed description of a package has another form; the message says where."""


class Kind(StrEnum):
    """How a package is installed."""

    SLOTS = "slots"
    """An archive that is unpacked in the idle one of two directories."""
    DEB = "deb"
    RAUC = "rauc"
    MCUBOOT = "mcuboot"
    SWU = "swu"
    """An image of SWUpdate, for devices that speak hawkBit's DDI. No installer of an agent takes one."""


class Custom(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What the vendor signs of a package beyond its path, length and digest.

    Attributes:
        product: what it is a version of.
        version: its version.
        build_id: names the build that made it, once and for all.
        hardware: the kinds of machine that it is for.
        kind: how it is installed.
        min_agent: the lowest version of the license agent that may install it.
        notes: release notes for people; plain text, with line breaks.
        released_at: when it was published, seconds since 1970 UTC.
    """

    product: Product
    version: VersionText
    build_id: BuildId
    hardware: Annotated[tuple[Hardware, ...], Meta(min_length=1, max_length=MAX_HARDWARE)]
    kind: Kind
    min_agent: VersionText
    notes: Annotated[str, Meta(max_length=MAX_NOTES_CHARS)]
    released_at: Time

    def __post_init__(self) -> None:
        if reserved := RESERVED_HARDWARE.intersection(self.hardware):
            raise ValueError(f"the hardware {min(reserved)} is not allowed: name each kind of machine")
        if len(set(self.hardware)) != len(self.hardware):
            raise ValueError("a kind of hardware is there twice")
        if (found := forbidden_in(self.notes.replace("\n", ""))) is not None:
            raise ValueError(f"the notes have the character {found}")


class Target(Custom, frozen=True, kw_only=True):
    """A package of the update repository, as its metadata describes it.

    Attributes:
        path: in the repository, `<product>/<file>`.
        length: bytes.
        sha256: 64 lowercase hex digits.
    """

    path: TargetPath
    length: PackageLength
    sha256: Hash

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path.partition("/")[0] != self.product:
            raise ValueError("the path is not in the product's folder")

    def address(self) -> str:
        """Where the file is in the repository: a target's name is preceded by its digest (TUF, consistent snapshots)."""
        product, _, name = self.path.partition("/")
        return f"targets/{product}/{self.sha256}.{name}"

    def custom(self) -> dict[str, Any]:
        """The target's `custom` in TUF metadata, ready for JSON."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        return {name: content[name] for name in Custom.__struct_fields__}


def read_target(path: str, length: int, hashes: Mapping[str, str], custom: object) -> Target:
    """The target that TUF metadata describes.

    Args:
        path: its key in `targets`.
        length: its `length`.
        hashes: its `hashes`; SHA-256 and no other, because the first one is part of the file's address.
        custom: its `custom`, or what is in its place.

    Raises:
        MalformedTarget: one of these has another form.
    """
    if not isinstance(custom, Mapping) or hashes.keys() != {"sha256"}:
        raise MalformedTarget(f"the target {ascii(path)[:100]} must have `custom`, and exactly the hash sha256")
    if unknown := custom.keys() - set(Custom.__struct_fields__):
        raise MalformedTarget(f"the target {ascii(path)[:100]} has unknown members: {ascii(', '.join(sorted(unknown)))[:100]}")
    try:
        return msgspec.convert({**custom, "path": path, "length": length, "sha256": hashes["sha256"]}, Target, strict=True)
    except msgspec.ValidationError as error:
        raise MalformedTarget(f"malformed target {ascii(path)[:100]}: {msgspec_text(str(error))}"[:400]) from None
