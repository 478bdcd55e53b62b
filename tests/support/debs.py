"""Packages of the agent that hold next to nothing, and a machine in a directory on which the real dpkg installs them."""

import io
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from common.files import no_trace
from installer.agentpackage.dpkg import Dpkg
from installer.agentpackage.packages import PACKAGE
from installer.agentpackage.repack import repack
from installer.agentpackage.rescue import UNITS, Layout, Rescue
from installer.backends.deb import Deb
from installer.programs import Ran
from installer.upgrade import Upgrader
from ipc.installermessages import Check

ROOT = Path(__file__).parents[2]
CONTROL = "Package: {}\nVersion: {}\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: a test\n"


@cache
def deb(
    version: str, package: str = PACKAGE, *, files: tuple[tuple[str, str], ...] = (), scripts: tuple[str, ...] = ()
) -> bytes:
    """Builds a package by dpkg-deb.

    Args:
        version: as dpkg writes it.
        package: its name.
        files: further path and content.
        scripts: maintainer scripts, as name and text in one, divided by a line break.
    """
    with TemporaryDirectory() as directory:
        top = Path(directory) / "top"
        for name, content in (
            ("usr/lib/license-agent/version", version),
            ("lib/systemd/system/license-agent.service", version),
            ("etc/license-agent/config.toml", "new = 1\n"),
            *files,
        ):
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(content)
        debian = top / "DEBIAN"
        debian.mkdir()
        (debian / "control").write_text(CONTROL.format(package, version))
        (debian / "conffiles").write_text("/etc/license-agent/config.toml\n")
        for script in scripts:
            name, _, text = script.partition("\n")
            (debian / name).write_text(text)
            (debian / name).chmod(0o755)
        for path in (top, *top.rglob("*")):
            path.chmod(0o755 if path.is_dir() or (path.parent == debian and path.name in ("preinst", "postinst")) else 0o644)
        made = Path(directory) / "made.deb"
        subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "--build", str(top), str(made)], check=True, stdout=subprocess.DEVNULL)
        return made.read_bytes()


class Box:
    """A machine in a directory: dpkg's database, files, units. It is made, or is there from before.

    Attributes:
        agent: the build that the agent says it is; None if it does not answer.
        answers: what programs answer, by their first arguments.
        orders: what systemd was ordered.
        now, boot: CLOCK_BOOTTIME in seconds, and this boot's id.
    """

    def __init__(self, top: Path) -> None:
        self.top, self.root, self.own = top, top / "root", top / "own"
        self.admin = self.root / "var/lib/dpkg"
        for directory in (self.own, self.own / "work", self.own / "upgrades", top / "units", top / "shipped", top / "program"):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for directory in ("info", "updates", "triggers"):
            (self.admin / directory).mkdir(parents=True, exist_ok=True)
        (self.admin / "status").touch()
        # As on every Debian, while packages still name what is below /lib.
        (self.root / "usr/lib").mkdir(parents=True, exist_ok=True)
        if not (self.root / "lib").is_symlink():
            (self.root / "lib").symlink_to("usr/lib")
        for name in UNITS:
            (top / "shipped" / name).write_text(f"# {name}\n")
        self.layout = Layout(self.own, self.root / "etc/license-agent", top / "units", top / "shipped")
        self.agent: str | None = "as installed"
        self.answers: dict[str, Ran] = {"is-active": Ran(0, "active"), "show": Ran(0, "0")}
        self.orders: list[str] = []
        self.systemd_fails = False
        self.now, self.boot = 100.0, "boot-1"

    def dpkg(self, within_s: float = 60.0) -> Dpkg:
        own = (
            f"--root={self.root}", "--log=/dev/null", "--force-not-root", "--force-script-chrootless", "--force-unsafe-io",
        )  # fmt: skip
        return Dpkg(("/usr/bin/dpkg", *own), self.admin, within_s)

    def rescue(self, trace: Callable[[str], None] = no_trace) -> Rescue:
        return Rescue(self.layout, self.dpkg(), lambda: self.boot, lambda: self.now, self._systemd, trace)

    def upgrader(self, trace: Callable[[str], None] = no_trace, within_s: float = 60.0) -> Upgrader:
        rescue = self.rescue(trace)
        pack = lambda: repack(PACKAGE, self.own / "work", self.admin, self.root)  # noqa: E731
        return Upgrader(rescue, self.dpkg(within_s), self._run, self._build, ROOT, pack, trace, lambda _seconds: None)

    def backend(self) -> Deb:
        def install(place: str, sha256: str, trace: Callable[[str], None]) -> tuple[Check, ...]:
            return (self.upgrader(trace).install(place, sha256),)

        return Deb(PACKAGE, self.rescue(), self.admin, install)

    def _systemd(self, *arguments: str) -> str:
        self.orders.append(" ".join(arguments))
        return "it failed" if self.systemd_fails else ""

    def _run(self, command: list[str], _within_s: float) -> Ran:
        return self.answers[command[1]]

    def _build(self) -> str:
        if self.agent is None:
            raise OSError(2, "it is not there")
        found = self.dpkg().status(PACKAGE)
        return self.agent if self.agent != "as installed" else str(found and found.version)

    def has(self, version: str) -> None:
        """Installs a version as apt would."""
        file = self.top / "apt.deb"
        file.write_bytes(deb(version))
        dpkg = self.dpkg()
        with dpkg.locked():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                dpkg.install(descriptor)
            finally:
                os.close(descriptor)

    def keep(self, place: str, version: str) -> str:
        """Puts a package in a place and returns its SHA-256."""
        packages = self.rescue().packages
        packages.put(place, io.BytesIO(deb(version)), version)
        kept = packages.kept(place)
        assert kept is not None
        return kept.sha256

    def installed(self) -> tuple[str, str] | None:
        """The version that dpkg knows, and the one on the disk."""
        found = self.dpkg().status(PACKAGE)
        if found is None:
            return None
        assert found.complete
        return found.version, (self.root / "usr/lib/license-agent/version").read_text()

    @property
    def config(self) -> Path:
        return self.layout.config

    def copy_to(self, top: Path) -> "Box":
        """Returns a machine that has what this one has."""
        shutil.copytree(self.top, top, symlinks=True)
        box = Box(top)
        box.now, box.boot = self.now, self.boot
        return box
