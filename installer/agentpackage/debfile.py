"""Reads what a .deb says of itself: an ar archive whose second member is a compressed tar with the file `control`.

The vendor has signed the package by then, and its scripts run as root; this finds out whether it is the one that was meant.
Only the standard library is imported: the rescue copy runs this.
"""

import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

MAGIC = b"!<arch>\n"
HEADER_BYTES = 60
MAX_CONTROL_BYTES = 1024 * 1024
MAX_UNPACKED_BYTES = 8 * 1024 * 1024
"""Of the control archive, with scripts and checksums."""
MAX_XZ_BYTES = 96 * 1024 * 1024
"""What xz may take to unpack it: the highest level takes 65 MiB."""
MAX_MEMBERS = 64
_FIELD = re.compile(r"^([A-Za-z0-9-]{1,64}): *(.*)$")


class BadDeb(Exception):
    """The file is no package that can be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Named:
    """A Debian version in the words of a target.

    Attributes:
        version: what is before "+" or "~".
        build_id: what is after the "+", with "-" for what a build's id cannot have; the version again if nothing is.
    """

    version: str
    build_id: str


def named(debian: str) -> Named:
    """Splits the version of a package: `0.2.0+412.gabc~deb12` is version 0.2.0, build 412.gabc-deb12."""
    version = re.split("[+~]", debian, maxsplit=1)[0]
    rest = debian[len(version) + 1 :] if debian[len(version) : len(version) + 1] == "+" else debian
    return Named(version, re.sub(r"[^A-Za-z0-9._-]", "-", rest)[:64])


def read_control(file: BinaryIO) -> Mapping[str, str]:
    """Reads the fields of a package's control file.

    Args:
        file: at its beginning.

    Raises:
        BadDeb: it is no package, or uses a compression other than gzip or xz.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise BadDeb("it is no Debian package")
    name, data = _member(file)
    if name != "debian-binary" or not data.startswith(b"2."):
        raise BadDeb("it is no Debian package of format 2")
    name, data = _member(file)
    if name not in ("control.tar.gz", "control.tar.xz"):
        raise BadDeb(f"its second member is {name!a}, not control.tar.gz or control.tar.xz; build it with -Zgzip")
    return _fields(_control(data, name.rpartition(".")[2]))


def _member(file: BinaryIO) -> tuple[str, bytes]:
    header = file.read(HEADER_BYTES)
    size = header[48:58].strip()
    if len(header) != HEADER_BYTES or header[58:] != b"`\n" or not size.isdigit() or int(size) > MAX_CONTROL_BYTES:
        raise BadDeb("a member of the archive is malformed, or too large")
    data = file.read(int(size))
    if len(data) != int(size):
        raise BadDeb("it is shorter than its header says")
    file.read(int(size) % 2)
    return header[:16].decode("ascii", "replace").rstrip().rstrip("/"), data


def _control(data: bytes, compression: str) -> str:
    texts = []
    try:
        with tarfile.open(fileobj=BytesIO(_unpacked(data, compression)), mode="r:") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise BadDeb(f"its control archive has more than {MAX_MEMBERS} members")
                # By its last name: tar drops what leads out of its directory, and follows links within it.
                if posixpath.basename(member.name) != "control":
                    continue
                found = archive.extractfile(member) if member.isreg() and member.size <= MAX_CONTROL_BYTES else None
                if found is None:
                    raise BadDeb("the file 'control' of its control archive is not a regular one, or too large")
                texts.append(found.read(MAX_CONTROL_BYTES).decode("utf-8"))
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise BadDeb(f"its control archive cannot be read: {error}") from None
    if len(texts) != 1:  # dpkg unpacks the archive, so of two files it has the last
        raise BadDeb(f"its control archive has {'no file' if not texts else 'more than one file'} 'control'")
    return texts[0]


def _unpacked(data: bytes, compression: str) -> bytes:
    """What was compressed, of which there may be no more than a bound: a megabyte of zeros becomes gigabytes."""
    decompressor = zlib.decompressobj(wbits=31) if compression == "gz" else lzma.LZMADecompressor(memlimit=MAX_XZ_BYTES)
    unpacked = decompressor.decompress(data, MAX_UNPACKED_BYTES + 1)
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise BadDeb(f"its control archive has more than {MAX_UNPACKED_BYTES} bytes")
    if not decompressor.eof or decompressor.unused_data:  # dpkg would read on
        raise BadDeb("its control archive is cut short, or something follows it")
    return unpacked


def _fields(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            continue
        field = _FIELD.match(line)
        if field is None or field[1] in found:
            raise BadDeb("its control file is malformed")
        found[field[1]] = field[2].strip()
    if missing := {"Package", "Version", "Architecture"} - set(found):
        raise BadDeb(f"its control file has no field {min(missing)}")
    return found
