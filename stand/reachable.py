"""Finds our commands where another user can run them: beside the running interpreter, or in a copy.

Root's home directory has mode 0700 on Debian: a checkout there is out of reach for the users as whom root runs agent and link.
A copy needs no privilege and changes nothing outside its directory: no mode of a directory, no mount.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

OURS = "license-agent"
HERE = Path(sys.executable).parent
"""Our commands and the interpreter that runs them."""
DEVICE = ("tpm", "journal", "link", "updates")
"""The extras that agent, link and updater need."""
_SCRIPT = """\
#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import sys

from {module} import {function}

sys.exit({function}())
"""
"""A command that the shell hands to Python, as pip writes it where the interpreter's path has spaces or is long."""
_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:\[([\w.,\s-]+)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w.-]+)['"]""")


def runnable_by(uid: int | None, directory: Path, extras: Iterable[str] = DEVICE) -> Path:
    """Where our commands are for a user.

    Args:
        uid: the user; None for the caller.
        directory: takes the copy, if one is needed; does not exist yet, in a place that the user can pass through.
        extras: what the copy has beside the required dependencies.
    """
    if uid is None or _can_run(uid):
        return HERE
    return copy(directory, extras)


def _can_run(uid: int) -> bool:
    """Whether a user can run the link, which is to say: reach the interpreter, our packages and all that they import."""
    try:
        done = subprocess.run(
            [HERE / "license-agent-link", "--help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            user=uid,
            group=uid,
            extra_groups=[],
            cwd="/",
        )
    except PermissionError:
        return False
    return done.returncode == 0


def copy(directory: Path, extras: Iterable[str]) -> Path:
    """Makes a virtual environment that every user can read, with what is installed here; returns the place of its commands.

    Args:
        directory: of the environment; does not exist yet.
        extras: of our distribution.
    """
    venv.EnvBuilder(symlinks=True).create(directory)
    packages = next(directory.glob("lib/python*/site-packages"))
    for name in _needed(OURS, frozenset(extras)):
        _copy_distribution(importlib.metadata.distribution(name), packages)
    # An editable installation names none of our packages: they are those beside this one that no other distribution has.
    owners = importlib.metadata.packages_distributions()
    for found in Path(__file__).parents[1].glob("*/__init__.py"):
        name = found.parent.name
        if set(owners.get(name, [OURS])) == {OURS}:
            shutil.copytree(found.parent, packages / name, dirs_exist_ok=True)
    commands = directory / "bin"
    for entry in importlib.metadata.distribution(OURS).entry_points.select(group="console_scripts"):
        (commands / entry.name).write_text(
            _SCRIPT.format(python=commands / "python", module=entry.module, function=entry.attr), encoding="utf-8"
        )
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent == commands else 0o644)
    return commands


def _needed(name: str, extras: frozenset[str]) -> set[str]:
    """A distribution and all that it requires, as far as it is installed: what is not has a marker for other systems."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    open_ends = [(_normal(name), extras)]
    while open_ends:
        wanted = open_ends.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        try:
            requirements = importlib.metadata.requires(wanted[0]) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(wanted[0])
        for text in requirements:
            extra = _EXTRA.search(text.partition(";")[2])
            match = _REQUIREMENT.match(text)
            if match is not None and (extra is None or extra[1] in wanted[1]):
                open_ends.append((_normal(match[1]), frozenset(re.findall(r"[\w.-]+", match[2] or ""))))
    return found


def _normal(name: str) -> str:
    """The one spelling of a distribution's name (packaging.python.org, "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _copy_distribution(distribution: importlib.metadata.Distribution, packages: Path) -> None:
    for file in distribution.files or []:
        source = Path(str(distribution.locate_file(file)))
        # Commands lie outside, at "../../../bin", and have this interpreter's path; a pointer to a checkout leads there.
        if ".." in file.parts or file.suffix == ".pth" or not source.is_file():
            continue
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        # With its time, by which Python knows that the compiled file beside it still fits.
        shutil.copy2(source, target)
