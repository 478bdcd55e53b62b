"""Makes a .deb of the installed package from its files, where the one that it was installed from is not kept.

A machine that got the agent from apt has no package to go back to. What is made here has the files as they are on the disk, but
without the conffiles that somebody has changed: dpkg would take what it installs for the content of the package, find it
unchanged at the next upgrade, and replace it.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Set
from pathlib import Path, PurePath

from .dpkg import ADMIN, ENVIRONMENT, MAX_STATUS_BYTES

DPKG_DEB = "/usr/bin/dpkg-deb"
PACK_S = 240.0
SCRIPTS = (
    "preinst",
    "postinst",
    "prerm",
    "postrm",
    "config",
    "templates",
    "triggers",
    "conffiles",
    "shlibs",
    "symbols",
    "md5sums",
)
_OF_DPKG = ("Status", "Conffiles", "Config-Version", "Triggers-Pending", "Triggers-Awaited")
"""Fields that dpkg adds to what the package says."""


class RepackFailed(Exception):
    """The package cannot be made; the text says why."""


def control_of(status: str, package: str) -> str:
    """Returns a package's control file from dpkg's status file.

    Raises:
        RepackFailed: dpkg does not know it.
    """
    found = re.search(rf"^Package: {re.escape(package)}\n(?:.+\n)*", status, re.MULTILINE)
    if found is None:
        raise RepackFailed(f"dpkg does not know the package {package}")
    fields = re.findall(r"^\S.*\n(?:[ \t].*\n)*", found[0], re.MULTILINE)
    return "".join(field for field in fields if field.partition(":")[0] not in _OF_DPKG)


def conffiles_of(status: str, package: str) -> dict[str, str]:
    """Returns a package's conffiles with the MD5 that each had in the package, from dpkg's status file."""
    found = re.search(rf"^Package: {re.escape(package)}\n(?:.+\n)*", status, re.MULTILINE)
    listed = None if found is None else re.search(r"^Conffiles:\n((?: .*\n)*)", found[0], re.MULTILINE)
    return {} if listed is None else dict(re.findall(r"^ (\S+) ([0-9a-f]{32})", listed[1], re.MULTILINE))


def repack(package: str, work: Path, admin: Path = ADMIN, root: Path = Path("/")) -> Path:
    """Makes the package and returns its file, which the caller removes.

    Args:
        package: its name.
        work: root's own directory; `repack` and `repack.deb` in it are replaced.
        admin: dpkg's directory.
        root: where the files of packages are.

    Raises:
        RepackFailed: it cannot be made.
        OSError: the disk fails.
    """
    tree, made = work / "repack", work / "repack.deb"
    shutil.rmtree(tree, ignore_errors=True)
    made.unlink(missing_ok=True)
    tree.mkdir(mode=0o755)
    tree.chmod(0o755)
    try:
        with (admin / "status").open("rb") as file:
            status = file.read(MAX_STATUS_BYTES).decode("utf-8", "replace")
        changed = {name for name, md5 in conffiles_of(status, package).items() if _md5(root / name.strip("/")) != md5}
        names = [
            line.strip("/")
            for line in (admin / "info" / f"{package}.list").read_text("utf-8").splitlines()
            if line not in changed
        ]
        # What others lie below was a directory in the package, also where this machine has a link, as /lib to usr/lib.
        directories = {str(above) for name in names for above in PurePath(name).parents}
        for name in names:
            if name not in ("", "."):
                _copy(root / name, tree / name, follow=name in directories)
        _describe(tree / "DEBIAN", control_of(status, package), package, admin, changed)
        _pack(tree, made)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return made


def _copy(source: Path, target: Path, *, follow: bool) -> None:
    try:
        info = source.stat(follow_symlinks=follow)
    except FileNotFoundError:
        return  # somebody removed it; the package that is made has what is there
    if stat.S_ISDIR(info.st_mode):
        target.mkdir(exist_ok=True)
    elif stat.S_ISLNK(info.st_mode):
        target.symlink_to(os.readlink(source))
    elif stat.S_ISREG(info.st_mode):
        shutil.copyfile(source, target)
    else:
        raise RepackFailed(f"{source} is neither a file, a directory nor a link")
    os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        target.chmod(stat.S_IMODE(info.st_mode))
        os.utime(target, ns=(info.st_mtime_ns, info.st_mtime_ns))


def _md5(path: Path) -> str:
    """As dpkg knows a conffile by it; empty if it is not there."""
    try:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    except FileNotFoundError:
        return ""


def _describe(debian: Path, control: str, package: str, admin: Path, changed: Set[str]) -> None:
    debian.mkdir()
    debian.chmod(0o755)
    (debian / "control").write_text(control, "utf-8")
    for name in SCRIPTS:
        part = admin / "info" / f"{package}.{name}"
        if part.exists():
            shutil.copyfile(part, debian / name)
            (debian / name).chmod(0o755 if os.access(part, os.X_OK) else 0o644)
    if (listed := debian / "conffiles").exists():
        kept = [line for line in listed.read_text("utf-8").splitlines() if line not in changed]
        listed.write_text("".join(f"{line}\n" for line in kept), "utf-8")
    (debian / "control").chmod(0o644)


def _pack(tree: Path, made: Path) -> None:
    try:
        done = subprocess.run(
            [DPKG_DEB, "-Zgzip", "-z1", "--build", str(tree), str(made)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(ENVIRONMENT),
            timeout=PACK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RepackFailed(f"dpkg-deb: {error}") from None
    if done.returncode != 0:
        raise RepackFailed(f"dpkg-deb ended with status {done.returncode}: {done.stdout.decode('utf-8', 'replace')[:300]}")
