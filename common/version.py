"""Holds the version of this release, which every program prints. The client library has a version of its own."""

from pathlib import Path

VERSION = "0.1.0"


def build_of(program: Path) -> str | None:
    """The build that a file belongs to; None of a program that runs from elsewhere than a package's tree.

    Each version of a package has a tree of its own, `/usr/lib/license-agent/VERSION`. The name of a tree does not change under
    a process that runs from it, as the installed version does when the package is upgraded.

    Args:
        program: a file in one of our folders.
    """
    tree = program.parents[1]
    return tree.name if tree.parent.parent == Path("/usr/lib") and tree.parent.name.startswith("license-agent") else None


BUILD = build_of(Path(__file__))
"""The version of the package that this process was started from; None without one."""
