"""Reads and names the update repository's metadata as files, with bounds on each and on all of them.

    1.root.json … N.root.json   timestamp.json   snapshot.json   targets.json   <role>.json

That is how the updater stages metadata beside a package, and how the installer reads it. A role's name is percent-encoded.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote

from common.files import naming, os_problem

MAX_ROOT_BYTES = 64 * 1024
MAX_ROOTS = 256
MAX_TIMESTAMP_BYTES = 16 * 1024
MAX_SNAPSHOT_BYTES = 256 * 1024
MAX_ROLE_BYTES = 5_000_000
"""Of the top-level targets and of each delegated role."""
MAX_ROLES = 16
"""Delegated roles of one set."""
MAX_TOTAL_BYTES = 32 * 1024 * 1024

_ROOT = re.compile(r"([1-9][0-9]{0,8})\.root\.json")
_ROLE = re.compile(r"([A-Za-z0-9._~%-]{1,200})\.json")
_TOP_LEVEL = {"timestamp": MAX_TIMESTAMP_BYTES, "snapshot": MAX_SNAPSHOT_BYTES, "targets": MAX_ROLE_BYTES}

MAX_NAMES = MAX_ROOTS + MAX_ROLES + len(_TOP_LEVEL)
"""Files of one set."""


class BadMetadataFiles(Exception):
    """The directory does not hold a set of metadata; the message says what is missing, unknown or too large."""


@dataclass(frozen=True, slots=True)
class MetadataFiles:
    """A set of metadata that nobody has verified yet.

    Attributes:
        roots: all roots that were brought, by version.
        timestamp: timestamp.json.
        snapshot: snapshot.json, the one that the timestamp names.
        targets: targets.json.
        roles: delegated roles, by name.
    """

    roots: Mapping[int, bytes]
    timestamp: bytes
    snapshot: bytes
    targets: bytes
    roles: Mapping[str, bytes] = field(default_factory=dict)

    def by_name(self) -> dict[str, bytes]:
        """The files by their names."""
        return {
            **{f"{number}.root.json": data for number, data in self.roots.items()},
            "timestamp.json": self.timestamp,
            "snapshot.json": self.snapshot,
            "targets.json": self.targets,
            **{f"{quote(name, '')}.json": data for name, data in self.roles.items()},
        }


def parse_names(named: Mapping[str, bytes]) -> MetadataFiles:
    """The set that files are by their names.

    Raises:
        BadMetadataFiles: a file is missing, or has a name that none of them has.
    """
    roots: dict[int, bytes] = {}
    roles: dict[str, bytes] = {}
    for name, data in named.items():
        if (root := _ROOT.fullmatch(name)) is not None:
            roots[int(root[1])] = data
        elif (role := _ROLE.fullmatch(name)) is None or quote(unquote(role[1]), "") != role[1] or role[1] == "root":
            raise BadMetadataFiles(f"{ascii(name)[:100]} is no file of the update repository's metadata; remove it")
        elif role[1] not in _TOP_LEVEL:
            roles[unquote(role[1])] = data
    if missing := [name for name in _TOP_LEVEL if f"{name}.json" not in named]:
        raise BadMetadataFiles(f"{missing[0]}.json is missing")
    if len(roots) > MAX_ROOTS or len(roles) > MAX_ROLES:
        raise BadMetadataFiles(f"there are more than {MAX_ROOTS} roots or {MAX_ROLES} delegated roles")
    return MetadataFiles(roots, named["timestamp.json"], named["snapshot.json"], named["targets.json"], roles)


def read_files(directory: Path) -> MetadataFiles:
    """Reads a directory that somebody else may write: follows no link, waits for no pipe, and reads no more than the bounds.

    Raises:
        BadMetadataFiles: it cannot be read, or holds something else.
    """
    named: dict[str, bytes] = {}
    total = 0
    try:
        with os.scandir(directory) as entries:  # no more of them than there may be: a name takes memory too
            names = sorted(entry.name for entry in islice(entries, MAX_NAMES + 1))
        if len(names) > MAX_NAMES:
            raise BadMetadataFiles(f"{directory} has more than {MAX_NAMES:,} files")
        for name in names:
            limit = MAX_ROOT_BYTES if _ROOT.fullmatch(name) else _TOP_LEVEL.get(name.removesuffix(".json"), MAX_ROLE_BYTES)
            named[name] = read_bounded(directory / name, limit)
            total += len(named[name])
            if total > MAX_TOTAL_BYTES:
                raise BadMetadataFiles(f"the files in {directory} have more than {MAX_TOTAL_BYTES:,} bytes")
    except OSError as error:
        raise BadMetadataFiles(os_problem(error, str(directory))) from None
    return parse_names(named)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        BadMetadataFiles: it is larger, or no regular file.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadMetadataFiles(f"{path} is not a regular file")
        with naming(path), open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise BadMetadataFiles(f"{path} has more than {limit:,} bytes")
    return data
