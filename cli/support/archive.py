"""Packs a support bundle in memory, and reads it again to prove that nothing secret is in it before anybody writes it."""

import gzip
import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import leaks
from .sources import MAX_MEMBER_BYTES, Member, NotRead

MANIFEST = "manifest.json"
ROOM = 256 * 1024 * 1024
"""What a finished archive may unpack to."""


@dataclass(slots=True)
class Bundle:
    """A bundle in the making.

    Attributes:
        files: the content of each member.
        manifest: what is said of each.
        missing: what could not be read, with the reason.
        removed: how often each kind of secret was taken out.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    manifest: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)
    removed: Counter[str] = field(default_factory=Counter)


def collect(members: Iterable[Member]) -> Bundle:
    """Reads all members and takes out what must not be in them."""
    made = Bundle()
    for name, what, read in members:
        try:
            text, removed = leaks.removed(read())
        except NotRead as error:
            why, removed = leaks.removed(str(error))
            made.missing.append({"name": name, "what": what, "why": why})
            made.removed += removed
            continue
        # The end of a journal or a log tells more than its beginning.
        data = text.encode("utf-8", "replace")[-MAX_MEMBER_BYTES:]
        made.files[name] = data
        made.removed += removed
        made.manifest.append({"name": name, "what": what, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return made


def packed(made: Bundle, version: str, now: int) -> bytes:
    """The archive: a gzipped tar with a manifest.

    Args:
        made: its content.
        version: of the program that made it.
        now: seconds since 1970 UTC.
    """
    manifest = {
        "format": 1,
        "version": version,
        "made_at": now,
        "members": made.manifest,
        "missing": made.missing,
        "removed": dict(made.removed),
    }
    files = {MANIFEST: json.dumps(manifest, indent=2).encode() + b"\n", **made.files}
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=now) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"license-agent-support/{name}")
            entry.size, entry.mtime, entry.mode = len(data), now, 0o600
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def leaked(archive: bytes) -> list[tuple[str, str]]:
    """What a finished archive still has that must not be in it: member and kind. Reads it as its receiver does."""
    hits: list[tuple[str, str]] = []
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for entry in tar:
            opened = tar.extractfile(entry)
            if opened is None or entry.size > ROOM:
                hits.append((entry.name, "what cannot be read"))
                continue
            text = opened.read().decode("utf-8", "replace")
            hits += [(entry.name, kind) for kind in leaks.found(f"{entry.name}\n{text}")]
    return hits
