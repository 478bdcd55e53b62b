"""Refuses to begin where a disk has too little room: a guest whose host has a full disk sees a broken one and cannot say why.

python3 tests/e2e/room.py DIRECTORY MEGABYTES WHAT-FOR
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

DISK_MB = 2000
"""What a guest's own disk and its payload come to at most."""


def free_mb(directory: Path) -> int:
    """Megabytes (of 1,000,000 bytes) that a user other than root may still write there; the folder may be yet to be made."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free // 1_000_000


def shortage(directory: Path, needed_mb: int, what_for: str) -> str | None:
    """What is missing in the folder, and what to do about it; None if there is room enough.

    Args:
        directory: where files will be written.
        needed_mb: megabytes.
        what_for: begins the sentence, such as "the guest's disk".
    """
    free = free_mb(directory)
    if free >= needed_mb:
        return None
    return (
        f"{what_for} needs {needed_mb / 1000:.1f} GB in {directory}, has {free / 1000:.1f} GB."
        " Remove files there, or give another folder: scripts/e2e --dir DIR."
    )


def main(arguments: Sequence[str]) -> int:
    """Status 1, and the text, if there is too little."""
    if len(arguments) != 3 or not arguments[1].isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    missing = shortage(Path(arguments[0]), int(arguments[1]), arguments[2])
    if missing is not None:
        print(f"e2e: {missing}", file=sys.stderr)
    return 0 if missing is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
