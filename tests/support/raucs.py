"""A machine in a directory whose system is in two files, which the real RAUC updates: its service on a bus of its own.

What a bootloader does, a handler of RAUC's does with files. Where the kernel has no dm-verity, RAUC itself can mount plain
bundles only; bundles for installation are then plain, and what would install them is given that format.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from common.files import no_trace
from installer.apply import perform
from installer.backends.rauc import Rauc
from installer.config import InstallerConfig, ProductConfig
from installer.contract import Place
from installer.jobs import Jobs
from installer.programs import Ran, run
from installer.rauc.raucbus import RaucFailed, RaucService
from installer.rauc.raucjobs import SAFE_FORMATS, RaucJobs
from tests.support.waiting import READY_S, wait_until

PRODUCT, COMPATIBLE = "till-system", "till-x"
MOUNTABLE = "verity" if os.path.exists("/dev/mapper/control") else "plain"
"""The format of bundles that RAUC can install here."""
BOOTNAMES: dict[Place, str] = {"a": "A", "b": "B"}
CONFIG = ProductConfig(PRODUCT, "rauc", Path("/nowhere"), "pos.service", 1001, ("/opt/pos/check",), 30)
SYSTEM_CONF = """
[system]
compatible={compatible}
bootloader=custom
statusfile={top}/status
mountprefix={top}/mnt
{more}
[keyring]
path={top}/keyring.pem
[handlers]
bootloader-custom-backend={top}/bootloader
[slot.rootfs.0]
device={top}/a.img
type=raw
bootname=A
[slot.rootfs.1]
device={top}/b.img
type=raw
bootname=B
"""
BOOTLOADER = """#!/bin/sh
cd "$(dirname "$0")" || exit 1
case "$1" in
get-primary) cat primary ;;
set-primary) echo "$2" >primary; echo good >"state.$2" ;;
get-state) cat "state.$2" 2>/dev/null || echo good ;;
set-state) echo "$3" >"state.$2" ;;
esac
"""
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={top}/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow own="*"/><allow receive_sender="*"/></policy></busconfig>
"""


@cache
def key(name: str) -> tuple[bytes, bytes]:
    """A key and its certificate."""
    with TemporaryDirectory() as top:
        files = [f"{top}/key.pem", f"{top}/cert.pem"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", files[0], "-out", files[1], "-days", "3650", "-subj", f"/CN={name}"],
            check=True, capture_output=True,
        )  # fmt: skip
        return Path(files[0]).read_bytes(), Path(files[1]).read_bytes()


@cache
def bundle(
    version: str,
    form: str = MOUNTABLE,
    *,
    compatible: str = COMPATIBLE,
    signer: str = "vendor",
    more: str = "",
    size: int = 65536,
) -> bytes:
    """A bundle that `rauc bundle` makes.

    Args:
        version: of the system, whose build is `b` and that.
        form: plain or verity.
        compatible: the kind of machine.
        signer: whose key signs it; the machines trust "vendor".
        more: further lines in [update] of its manifest.
        size: of the image, bytes.
    """
    with TemporaryDirectory() as top:
        for name, data in zip(("key.pem", "cert.pem"), key(signer), strict=True):
            (Path(top) / name).write_bytes(data)
        content = Path(top) / "content"
        content.mkdir()
        # No two blocks are alike, so that squashfs stays above one block, which RAUC wants.
        (content / "system.img").write_bytes(
            b"".join(f"{version} {at:8}\n".encode() for at in range(size // 16)) + os.urandom(8192)
        )
        (content / "manifest.raucm").write_text(
            f"[update]\ncompatible={compatible}\nversion={version}\nbuild=b{version}\n{more}\n[bundle]\nformat={form}\n"
            "[image.rootfs]\nfilename=system.img\n"
        )
        subprocess.run(
            ["rauc", "bundle", f"--cert={top}/cert.pem", f"--key={top}/key.pem", str(content), f"{top}/made.raucb"],
            check=True, capture_output=True,
        )  # fmt: skip
        return (Path(top) / "made.raucb").read_bytes()


class System:
    """The machine. It is made, or is there from before; `close` ends its processes.

    Attributes:
        commands: what systemctl was called with.
        failing: systemctl's verbs that fail.
        formats: of bundles that may be installed.
        os_release: of the image that runs.
    """

    def __init__(self, top: Path, more: str = "") -> None:
        self.top, self.own = top, top / "own"
        for directory in (self.own, self.own / "jobs", self.own / "work", top / "mnt"):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, text in (("system.conf", SYSTEM_CONF), ("bus.conf", BUS), ("bootloader", BOOTLOADER)):
            (top / name).write_text(text.replace("{top}", str(top)).replace("{compatible}", COMPATIBLE).replace("{more}", more))
        (top / "bootloader").chmod(0o755)
        (top / "keyring.pem").write_bytes(key("vendor")[1])
        if not (top / "primary").exists():
            (top / "primary").write_text("A\n")
            for place in ("a", "b"):
                (top / f"{place}.img").write_bytes(bytes(256 * 1024))
        self.commands: list[list[str]] = []
        self.failing: set[str] = set()
        self.formats = SAFE_FORMATS | {MOUNTABLE}
        self.os_release = top / "os-release"
        self.booted = ""
        self.applies = True
        self._now = 0.0
        self._bus: subprocess.Popen[bytes] | None = None
        self.rauc: subprocess.Popen[bytes] | None = None

    def starts_next(self) -> str:
        """The bootloader's name of the slot that starts next."""
        return (self.top / "primary").read_text().strip()

    def reboot(self, into: str = "") -> None:
        """Has the machine run from the slot that the bootloader starts next, or another."""
        self.booted = into or self.starts_next()
        self.stop_rauc()
        self.start_rauc()

    def start_rauc(self) -> None:
        """Starts the bus, if there is none, and RAUC on it."""
        if self._bus is None:
            (self.top / "bus").unlink(missing_ok=True)
            bus = self._bus = self._spawn("dbus-daemon", "--nofork", "--nosyslog", f"--config-file={self.top}/bus.conf")
            # RAUC ends where there is no bus yet.
            wait_until(self._bus_listens, lambda: "the bus does not listen", lives=lambda: bus.poll() is None, pause_s=0.01)
        rauc = self.rauc = self._spawn(
            "rauc", f"--conf={self.top}/system.conf", "service", f"--override-boot-slot={self.booted}"
        )

        def ready() -> bool:
            try:
                with self.service():
                    return True
            except RaucFailed:
                return False

        log = self.top / "rauc.log"
        wait_until(ready, lambda: f"RAUC does not answer: {log.read_text()}", lives=lambda: rauc.poll() is None, pause_s=0.01)

    def _bus_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self.top / "bus")) == 0

    def stop_rauc(self) -> None:
        """Ends RAUC as a crash does."""
        _end(self.rauc)
        self.rauc = None

    def service(self) -> RaucService:
        return RaucService(str(self.top / "bus"))

    def close(self) -> None:
        self.stop_rauc()
        _end(self._bus)
        self._bus = None
        # RAUC that was killed leaves a bundle mounted.
        while os.path.ismount(self.top / "mnt" / "bundle"):
            subprocess.run(["umount", str(self.top / "mnt" / "bundle")], check=True)

    def raucjobs(self) -> RaucJobs:
        return RaucJobs(
            self.run, self.service, self.own / "rauc", ("/usr/bin/rauc", f"--conf={self.top}/system.conf"), self.formats,
            self.os_release,
        )  # fmt: skip

    def run(self, command: list[str], within_s: float) -> Ran:
        """Runs a program; systemctl says yes."""
        if command[0].endswith("systemctl"):
            self.commands.append(command[1:])
            return Ran(1, "it failed") if command[1] in self.failing else Ran(0, "")
        return run(command, within_s)

    def jobs(self, trace: Callable[[str], None] = no_trace) -> Jobs:
        return Jobs(self.own / "jobs", lambda: self._now, self._sleep, trace)

    def _sleep(self, seconds: float) -> None:
        self._now += seconds
        if self.applies:
            perform(self.own / "jobs", lambda: InstallerConfig({PRODUCT: CONFIG}), self.run, self.raucjobs().do)

    def backend(self) -> Rauc:
        """Makes a new one each time. The machine has restarted, where another slot starts next."""
        if self.rauc is None or self.booted != self.starts_next():
            self.reboot()
        return Rauc(PRODUCT, self.own / "rauc", partial(self.jobs().rauc, PRODUCT), outlives=lambda _: True)

    def image(self, place: Place) -> bytes:
        """The first word of what is in a place."""
        return (self.top / f"{place}.img").read_bytes()[:16].split()[0]

    def copy_to(self, top: Path) -> "System":
        """A machine that has what this one has."""
        shutil.copytree(self.top, top, ignore=shutil.ignore_patterns("bus", "mnt"))
        return System(top)

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.top / f"{command[0]}.log").open("ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.top}/bus"},
            )  # fmt: skip


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait(READY_S)
