#!/usr/bin/python3
"""The disk and the kernel of the end-to-end guest: Debian 12 or 13, built once and re-used until its ingredients change.

    python3 tests/e2e/image.py DIRECTORY [SUITE]

Root is needed (owners of files, chroot), a loop device is not. Host packages: mmdebstrap, e2fsprogs.

The kernel's package is unpacked, never installed: what the guest boots from (NVMe, ext4) is compiled into Debian's cloud
kernel, so there is no initramfs to make. The license agent's own packages are not in it; tests install them in the guest.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
"""What is built where nobody says otherwise."""
KERNEL = "linux-image-cloud-amd64"
DISK_SIZE = "3G"
"""Virtual; the file is sparse."""

USERS = {"till": 1500, "stranger": 1600}
"""Login names and their uids: the account of a POS application, and one that has no business with the agent."""

_PACKAGES = (
    # The system.
    *("systemd", "systemd-sysv", "libpam-systemd", "libsystemd0", "dbus", "udev", "kmod", "procps", "iproute2"),
    # In place of usrmerge, which every mmdebstrap would otherwise install and run, with all of Perl.
    "usr-is-merged",
    # How the tests come in.
    "qemu-guest-agent",
    # The cage.
    *("apparmor", "apparmor-utils", "libseccomp2"),
    # The TPM: group tss and the device's mode, and a second opinion.
    *("tpm-udev", "tpm2-tools"),
    # The agent's other dependencies, and what looks at it from outside.
    *("python3", "tzdata", "zlib1g", "openssl", "curl", "strace", "prometheus-node-exporter"),
    # An administrator's key lies in an ssh-agent.
    "openssh-client",
    # What the client's package depends on.
    "python3-msgpack",
    # Updates of whole systems; the installer's own disk is made in the guest, and not every release brings what makes it.
    *("rauc", "rauc-service", "e2fsprogs"),
)
_TPM_LIBRARIES = {
    "bookworm": (
        *("libtss2-esys-3.0.2-0", "libtss2-mu0", "libtss2-rc0", "libtss2-fapi1", "libtss2-tctildr0"),
        "libtss2-tcti-device0",
    ),
    "trixie": (
        *("libtss2-esys-3.0.2-0t64", "libtss2-mu-4.0.1-0t64", "libtss2-rc0t64", "libtss2-fapi1t64", "libtss2-tctildr0t64"),
        *("libtss2-policy0t64", "libtss2-tcti-device0t64"),
    ),
}
"""What the agent's package depends on. The guest has no mirror to get it from."""
SUITES = tuple(_TPM_LIBRARIES)

NOT_AT_BOOT = (
    # Each of these mounts is a process or two (modprobe@…) during the busiest seconds of the boot.
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "proc-sys-fs-binfmt_misc.automount"),
    *("systemd-binfmt.service", "systemd-repart.service"),
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-pstore.service",
    "systemd-timesyncd.service",
)
"""Units of Debian that cost seconds under emulation and have nothing to do in a guest that lives for minutes: masked."""

STARTED_BY_TESTS = ("prometheus-node-exporter.service",)
"""Units that stay off until a test says `systemctl start`."""

_KEEP_SMALL = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "force-unsafe-io",
)

FILES = {
    "/etc/hostname": "till-1\n",
    "/etc/hosts": "127.0.0.1 localhost till-1\n::1 localhost\n",
    "/etc/resolv.conf": "",
    "/etc/default/locale": "LANG=C.UTF-8\n",
    "/etc/dpkg/dpkg.cfg.d/guest": "force-unsafe-io\n",
    # Without an identity the system takes each boot for its first and applies all presets again.
    "/etc/machine-id": hashlib.sha256(b"license-agent end-to-end guest").hexdigest()[:32] + "\n",
    # The second disk is always there (guest.py), so that no boot waits for a disk that does not come.
    "/etc/fstab": "/dev/nvme0n1 / ext4 noatime,noinit_itable 0 0\n/dev/vda /payload ext4 ro 0 0\n",
    "/etc/systemd/system.conf.d/emulated.conf": (
        "# Emulation without KVM is some twenty times slower than the machine that Debian's limits were made for.\n"
        "[Manager]\nDefaultTimeoutStartSec=300s\nDefaultTimeoutStopSec=90s\nDefaultDeviceTimeoutSec=300s\n"
    ),
    "/etc/systemd/journald.conf.d/evidence.conf": (
        "# The tests judge by the journal: it outlives a reboot, and no line of it is dropped for its rate.\n"
        "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\nSyncIntervalSec=5s\n"
    ),
}


@dataclass(frozen=True)
class Image:
    """What a guest boots from. Guests write to an overlay of their own, never here.

    Attributes:
        suite: the Debian release.
        rootfs: a raw ext4 file system without partitions.
        vmlinuz: the kernel; it needs no initramfs.
        manifest: names and versions of all that is installed, one a line.
    """

    suite: str
    rootfs: Path
    vmlinuz: Path
    manifest: Path


class ImageError(Exception):
    """The image could not be built; the text says which step failed and what it printed."""


def build(directory: Path, suite: str = SUITE) -> Image:
    """The image in `directory`; built if it is missing, or was made of other packages or by another version of this file.

    Args:
        directory: made if it is not there; about 700 MB.
        suite: the Debian release, one of SUITES.

    Raises:
        ImageError: not root, a missing tool, or a step that failed.
    """
    directory = directory.resolve()
    image = Image(suite, directory / "rootfs.ext4", directory / "vmlinuz", directory / "packages.txt")
    packages = sorted({*_PACKAGES, *_TPM_LIBRARIES[suite]})
    stamp, fingerprint = directory / "fingerprint", _fingerprint(suite)
    if image.rootfs.exists() and image.vmlinuz.exists() and stamp.exists() and stamp.read_text() == fingerprint:
        return image
    _refuse_without_tools()
    directory.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    # Beside the result rather than in /tmp: there is room where the image has room.
    with tempfile.TemporaryDirectory(prefix="build-", dir=directory) as work:
        root, kernel = Path(work, "root"), Path(work, "kernel")
        kernel.mkdir()
        _install(suite, root, packages, kernel)
        version = _unpack_kernel(kernel)
        _furnish(root, kernel, version)
        image.manifest.write_text(_run("chroot", str(root), "dpkg-query", "-W") + f"kernel\t{version}\n")
        shutil.copyfile(kernel / "boot" / f"vmlinuz-{version}", image.vmlinuz)
        make_ext4(root, image.rootfs, DISK_SIZE, label="root")
    stamp.write_text(fingerprint)
    return image


def make_ext4(tree: Path, file: Path, size: str, *, label: str, journal: bool = True) -> None:
    """Writes `tree` into `file` as an ext4 file system with owners, modes and extended attributes; mounts nothing for it.

    Args:
        tree: becomes the root directory of the file system.
        file: replaced if it is there.
        size: of the file system, in the words of mke2fs ("3G", "40960k").
        label: of the file system, 16 characters at most.
        journal: wanted where the guest writes.
    """
    file.unlink(missing_ok=True)
    features = "^metadata_csum_seed" if journal else "^has_journal,^metadata_csum_seed"
    options = ("-q", "-t", "ext4", "-L", label, "-m", "0", "-O", features, "-E", "root_owner=0:0,lazy_itable_init=1")
    _run("mke2fs", *options, "-d", str(tree), str(file), size)


def _fingerprint(suite: str) -> str:
    return hashlib.sha256(Path(__file__).read_bytes() + suite.encode()).hexdigest()


def _refuse_without_tools() -> None:
    if os.geteuid() != 0:
        raise ImageError("Building the guest's image needs root: files of many owners, and chroot.")
    missing = [tool for tool in ("mmdebstrap", "mke2fs", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise ImageError(f"Not installed: {', '.join(missing)}. Try: apt-get install mmdebstrap e2fsprogs")


def _install(suite: str, root: Path, packages: Sequence[str], kernel: Path) -> None:
    """Installs the packages in `root`, and leaves the kernel's package in `kernel`."""
    # The host's mirrors, proxies and leniencies are what works here; its directories and hooks are not the guest's.
    acquire = [line for line in _run("apt-config", "dump", "Acquire").splitlines() if not line.endswith(' "";')]
    options = ['APT::Install-Recommends "false";', 'Acquire::Languages "none";', *acquire]
    # Another release than the host's comes from where mmdebstrap finds it.
    sources = [
        path
        for path in ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")
        if f"VERSION_CODENAME={suite}\n" in Path("/etc/os-release").read_text()
        if Path(path).exists() and Path(path).stat().st_size
    ]
    # With the guest's apt, from outside: the host's may know another release's kernels only.
    package = f"$(apt-cache depends {KERNEL} | sed -n 's/.*Depends: \\(linux-image-.*\\)/\\1/p' | head -n 1)"
    fetch = (
        f'cd "{kernel}" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" &&'
        f' apt-get --quiet -o APT::Sandbox::User=root download "{package}"'
    )
    _run(
        "mmdebstrap",
        *("--quiet", "--mode=root", "--variant=minbase", "--format=directory", f"--include={','.join(packages)}"),
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        *(f"--aptopt={option}" for option in options),
        *(f"--dpkgopt={option}" for option in _KEEP_SMALL),
        f"--customize-hook={fetch}",
        *(suite, str(root), *sources),
    )


def _unpack_kernel(kernel: Path) -> str:
    """Returns the version of the kernel whose package lies in `kernel`."""
    package = next(kernel.glob("linux-image-*.deb"), None)
    if package is None:
        raise ImageError(f"apt found no kernel behind {KERNEL}. Try: apt-get update")
    _run("dpkg-deb", "--extract", str(package), str(kernel))
    return package.name.removeprefix("linux-image-").split("_")[0]


def _furnish(root: Path, kernel: Path, version: str) -> None:
    # Debian 13 packs the modules below /usr.
    modules = next(path for path in (kernel / "lib/modules", kernel / "usr/lib/modules") if path.is_dir())
    (root / "usr/lib/modules").mkdir(exist_ok=True)
    shutil.move(modules / version, root / "usr/lib/modules" / version)
    _run("chroot", str(root), "depmod", version)
    for name, uid in USERS.items():
        _run("chroot", str(root), "useradd", "--create-home", "--uid", str(uid), "--user-group", "--shell", "/bin/sh", name)
    # The guest has no mirror. Packages that the tests install are unpacked whole and with dpkg's own care for the disk.
    for left in ("etc/apt/sources.list", "etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap"):
        (root / left).unlink(missing_ok=True)
    for folder in ("etc/apt/sources.list.d", "var/lib/apt/lists", "var/cache/apt"):
        for entry in (root / folder).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    units = root / "etc/systemd/system"
    for unit in NOT_AT_BOOT:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    _run("chroot", str(root), "systemctl", "--quiet", "disable", *STARTED_BY_TESTS)
    for name, text in FILES.items():
        file = root / name.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text)
    (root / "payload").mkdir()
    (root / "var/log/journal").mkdir(exist_ok=True)
    # Newer than /usr: ldconfig, the hardware database and their like have nothing to bring up to date at the first boot.
    for done in ("etc/.updated", "var/.updated"):
        (root / done).touch()


def _run(*command: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=900
    )
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")[-4000:]
        raise ImageError(f"{command[0]} failed with status {done.returncode} while the guest's image was made:\n{said}")
    return done.stdout.decode(errors="replace")


def main(arguments: Sequence[str]) -> int:
    """Builds or re-uses the image and says how long that took."""
    if len(arguments) not in (1, 2) or arguments[0].startswith("-") or (arguments[1:] and arguments[1] not in SUITES):
        print(__doc__, file=sys.stderr)
        return 2
    began = time.monotonic()
    try:
        image = build(Path(arguments[0]), *arguments[1:])
    except ImageError as error:
        print(f"image.py: {error}", file=sys.stderr)
        return 1
    size = image.rootfs.stat().st_blocks * 512 / 1e6
    print(f"{image.rootfs}: {size:.0f} MB on disk, ready after {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
