"""Makes packages of the agent from the one that was built: the next version of it, and versions that do not work."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

Change = Callable[[Path], None]
"""Changes the files of a package: its argument holds the tree of programs, `common`, `agentd` and so on."""


def version_of(package: Path) -> str:
    """The version that a package says it is."""
    return _run("dpkg-deb", "--field", str(package), "Version").strip()


def repacked(package: Path, out: Path, version: str, change: Change | None = None, postinst: str = "") -> Path:
    """Writes a package again under another version, with its own tree of programs as each version has.

    Args:
        package: of the agent.
        out: the new package's folder.
        version: as dpkg writes it.
        change: makes it another program.
        postinst: lines at the end of that script.
    """
    made = out / f"license-agent_{version}.deb"
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out) as place:
        top = Path(place, "package")
        _run("dpkg-deb", "--raw-extract", str(package), str(top))
        before, programs = version_of(package), top / "usr/lib/license-agent"
        (programs / before).rename(programs / version)
        for launcher in (*(top / "usr/bin").iterdir(), *(top / "usr/libexec").iterdir()):
            if launcher.is_file() and not launcher.is_symlink():
                launcher.write_text(launcher.read_text().replace(f"/usr/lib/license-agent/{before}", f"{programs_of(version)}"))
        control = top / "DEBIAN/control"
        control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
        (top / "DEBIAN/md5sums").unlink(missing_ok=True)
        if change is not None:
            change(programs / version)
        if postinst:
            script = top / "DEBIAN/postinst"
            script.write_text(f"{script.read_text()}\n{postinst}\n")
        _run("dpkg-deb", "-Zgzip", "-z1", "--build", str(top), str(made))
    return made


def programs_of(version: str) -> str:
    """Where a version has its programs."""
    return f"/usr/lib/license-agent/{version}"


def appended(name: str, text: str) -> Change:
    """Adds lines to a module's end; its bytecode, which is never compared with it, goes."""

    def change(programs: Path) -> None:
        module = programs / name
        if not module.is_file():
            raise FileNotFoundError(f"the package has no {name}")
        module.write_text(f"{module.read_text()}\n{text}\n")
        for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc"):
            compiled.unlink()

    return change


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} on the host: {done.stderr[-500:]}")
    return done.stdout
