"""Says what a package is that somebody names: a file of this machine, or one of the update repository. Performs no IO."""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_TARGET = re.compile(r"targets/(?:[^/]+/)*(?P<sha256>[0-9a-f]{64})\.[^/]+")


class NoPackage(ValueError):
    """It names no package that this machine would install; the text says why, and follows the name."""


@dataclass(frozen=True, slots=True)
class InRepository:
    """A package of the update repository.

    Attributes:
        sha256: of the package, hex.
    """

    sha256: str


def package_named(text: str, upstream: str | None) -> Path | InRepository:
    """What a text names: a path, a `file:` URL, or a URL below the repository that the link is configured for.

    Args:
        text: as somebody wrote it.
        upstream: `url` in [upstream.ota] of link.toml; None without one.

    Raises:
        NoPackage: anything else.
    """
    if "://" not in text:
        return Path(text)
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError:
        raise NoPackage("is not a URL") from None
    if parts.scheme == "file":
        if host not in (None, "localhost") or parts.query or parts.fragment or not parts.path.startswith("/"):
            raise NoPackage("must be file:/// and an absolute path of this machine")
        return Path(unquote(parts.path))
    if upstream is None:
        raise NoPackage("is not below the update repository: link.toml has no [upstream.ota]")
    base = upstream.rstrip("/") + "/"
    rest = text.removeprefix(base)
    if rest == text or posixpath.normpath(rest) != rest or "%" in rest or "?" in rest or "#" in rest:
        raise NoPackage(f"is not below the update repository of this machine, {base}")
    found = _TARGET.fullmatch(rest)
    if found is None:
        raise NoPackage(f"is no package of the repository: those are at {base}targets/PRODUCT/SHA256.NAME")
    return InRepository(found["sha256"])


def upstream_of(link: dict[str, Any]) -> str | None:
    """`url` in [upstream.ota] of a link.toml; None without one."""
    upstream = link.get("upstream")
    ota = upstream.get("ota") if isinstance(upstream, dict) else None
    url = ota.get("url") if isinstance(ota, dict) else None
    return url if isinstance(url, str) else None
