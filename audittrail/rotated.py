"""Recognizes files that a log rotation program has left beside a log. Reads a directory; writes no file."""

import re
from pathlib import Path

_SUFFIX = re.compile(r"[.-](\d{1,10})(\.(gz|xz|bz2|zst))?")


def rotated_copies(log: Path) -> list[Path]:
    """Files like `audit.log.1`, `audit.log.2.gz` or `audit.log-20261129` beside a log, as logrotate names them."""
    try:
        names = sorted(path for path in log.parent.iterdir() if path.name.startswith(log.name))
    except OSError:
        return []
    return [path for path in names if _SUFFIX.fullmatch(path.name[len(log.name) :])]


def hint(log: Path) -> str:
    """What to tell with a log whose beginning or end is missing; empty if nothing lies beside it."""
    found = rotated_copies(log)
    if not found:
        return ""
    return (
        f". Likely cause: {found[0].name} lies beside it, so a program such as logrotate has rotated the log, which the agent"
        " does by itself; the guide 'Keep logrotate away from the audit log' tells how to put it back"
    )
