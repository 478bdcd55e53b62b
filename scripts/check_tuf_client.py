"""The client that TUF's conformance suite drives (its CLIENT-CLI.md): init, refresh, download. Exit status 0 or 1.

It is `updatetrust.client` with HTTP on loopback in the link's place. After each refresh it also asks `verify_offline`, which
must accept what the client accepted.
"""

import argparse
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from updatetrust.client import NotThere, Repository, RepositoryUnreachable, Source
from updatetrust.metadata import KeptVersions, MetadataRefused

BOOTSTRAP = "trusted-root"
PIECE = 16 * 1024


def http(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            while piece := reply.read(PIECE):
                yield piece
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (403, 404):
                raise NotThere from None
            raise


def metadata_at(base: str | None) -> Source:
    return lambda path: http(f"{(base or '').rstrip('/')}/{path.removeprefix('metadata/')}")


def download(repository: Repository, name: str, base: str, directory: Path) -> None:
    found = repository.look_up(name)
    if found is None:
        raise NotThere(f"{name} is not in the repository")
    path = directory / quote(name, "")
    if not is_there(found, path):
        address = found.get_prefixed_paths()[0] if repository.has_consistent_snapshots() else found.path
        data = b"".join(bounded(http(f"{base.rstrip('/')}/{address}"), found.length))
        found.verify_length_and_hashes(data)
        path.write_bytes(data)


def bounded(pieces: Iterator[bytes], length: int) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > length:
            raise LengthOrHashMismatchError("longer than its metadata says")
        yield piece


def is_there(found: TargetFile, path: Path) -> bool:
    try:
        found.verify_length_and_hashes(path.read_bytes())
    except (OSError, LengthOrHashMismatchError):
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url", default="")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    asked = parser.parse_args(arguments)
    kept = asked.metadata_dir / BOOTSTRAP
    if asked.command == "init":
        kept.write_bytes(asked.trusted_root.read_bytes())
    now = int(os.environ.get("CHECK_TUF_NOW") or time.time())
    repository = None
    try:
        repository = Repository(asked.metadata_dir, metadata_at(asked.metadata_url), kept.read_bytes(), now)
        if asked.command != "init":
            repository.refresh()
            repository.verified(KeptVersions())
        for name in asked.target_name:
            download(repository, name, asked.target_base_url, asked.target_dir)
    except (MetadataRefused, RepositoryUnreachable, LengthOrHashMismatchError, NotThere) as error:
        print(f"{asked.command}: {error}", file=sys.stderr)
        return 1
    finally:
        if repository is not None:
            # The suite looks for the newest root under this name. The client has no use for it.
            newest = asked.metadata_dir / "root_history" / f"{repository.root_version()}.root.json"
            (asked.metadata_dir / "root.json").write_bytes(newest.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
