"""Makes a bundle for slots from a directory: the same directory gives the same bytes. The format: docs/bundle-format.md."""

import io
import json
import os
import stat
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from installer.bundle.errors import BundleRefused
from installer.bundle.unpack import judge_bundle

LEVEL = 19
"""Of zstd, unless another one is given."""


class NotMade(Exception):
    """The directory cannot become a bundle. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Says:
    """What a bundle's manifest says, and the signed target with it.

    Attributes:
        product: its name.
        version: for example 1.2.3.
        build_id: unique for each build.
    """

    product: str
    version: str
    build_id: str


def make(top: Path, output: Path, says: Says, level: int = LEVEL) -> dict[str, object]:
    """Writes the bundle and returns what its manifest says, without `v`.

    Raises:
        NotMade: something in the directory has no place in a bundle.
        BundleRefused: the installer would refuse it.
        OSError: reading or writing failed.
    """
    paths = members(top)
    infos = [path.lstat() for path in paths]
    manifest: dict[str, object] = {"product": says.product, "version": says.version, "build_id": says.build_id}
    manifest |= {"entries": len(paths), "bytes": sum(info.st_size for info in infos if stat.S_ISREG(info.st_mode))}
    newest = max((int(info.st_mtime) for info in infos), default=0)
    temporary = output.with_name(f".{output.name}.new")
    try:
        with temporary.open("wb") as file:
            compressor = zstandard.ZstdCompressor(
                compression_params=zstandard.ZstdCompressionParameters.from_level(level, window_log=23)
            )
            with (
                compressor.stream_writer(file, closefd=False) as compressed,
                tarfile.open(fileobj=compressed, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
            ):
                data = json.dumps({"v": 1, **manifest}).encode()
                first = tarfile.TarInfo("manifest.json")
                first.size, first.mtime = len(data), newest
                archive.addfile(first, io.BytesIO(data))
                for path, info in zip(paths, infos, strict=True):
                    _add(archive, path, str(path.relative_to(top)), info)
        with temporary.open("rb") as file:
            judge_bundle(file)
        temporary.replace(output)
    except ValueError as error:  # tarfile: a name that does not fit a ustar header
        raise NotMade(f"{error}; a path has at most 255 bytes, and a link's target 100") from None
    finally:
        temporary.unlink(missing_ok=True)
    return manifest


def members(top: Path) -> list[Path]:
    """Everything in a directory, each directory before what is in it.

    Raises:
        NotMade: something has no place in a bundle.
        OSError: the directory cannot be read.
    """
    found = []
    for directory, names, files in os.walk(top, onerror=_raise):
        names.sort()
        linked = [name for name in names if Path(directory, name).is_symlink()]
        names[:] = [name for name in names if name not in linked]
        if directory != str(top):
            found.append(Path(directory))
        for name in sorted([*files, *linked]):
            path = Path(directory, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                raise NotMade(f"{path} is neither a file, a directory nor a symbolic link; remove it")
            if path != top / "manifest.json":  # a bundle that was unpacked has one already
                found.append(path)
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _add(archive: tarfile.TarFile, path: Path, name: str, info: os.stat_result) -> None:
    member = tarfile.TarInfo(name)
    member.mtime = int(info.st_mtime)
    if stat.S_ISLNK(info.st_mode):
        member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, os.readlink(path)
    elif stat.S_ISDIR(info.st_mode):
        member.type, member.mode = tarfile.DIRTYPE, 0o755
    else:
        member.mode, member.size = 0o755 if info.st_mode & 0o100 else 0o644, info.st_size
        with path.open("rb") as file:
            archive.addfile(member, file)
        return
    archive.addfile(member)


def main(options: dict[str, Any]) -> int:
    """Makes a bundle of a product in slots; returns the exit status.

    Args:
        options: `directory`, `output`, `product`, `version`, `build_id`, `level`.
    """
    top = Path(options["directory"])
    says = Says(options["product"], options["version"], options["build_id"])
    try:
        make(top, Path(options["output"]), says, options.get("level", LEVEL))
    except (NotMade, BundleRefused) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename or top}: {error.strerror}\n")
        return 1
    return 0
