"""Updates a whole system in the booted guest: real RAUC, dm-verity, the installed units in their sandboxes, real restarts.

The guest's own root stays the same. Its two slots are files, and a handler of RAUC's does what a bootloader does: which slot
the machine "runs from" is settled at each boot, by the slot that was to start next. The orders come from a program in the
core's place.
"""

import json
from pathlib import Path
from typing import Protocol

from tests.e2e.guest import Guest
from tests.support.waiting import READY_S

PRODUCT = "till-system"
PROBE = "/payload/probes/order.py"
INSTALLER_DISK = "/srv/installer.ext4"
"""What the installer keeps is on a file system of its own, as on a machine whose root is replaced."""
SYSTEM_CONF = """[system]
compatible=till-x
bootloader=custom
bundle-formats=-plain
statusfile=/srv/rauc/status
[keyring]
path=/etc/rauc/keyring.pem
[handlers]
bootloader-custom-backend=/srv/rauc/bootloader
[slot.rootfs.0]
device=/srv/rauc/a.img
type=raw
bootname=A
[slot.rootfs.1]
device=/srv/rauc/b.img
type=raw
bootname=B
"""
BOOTLOADER = """#!/bin/sh
cd /srv/rauc || exit 1
case "$1" in
get-primary) cat primary ;;
set-primary) echo "$2" >primary; echo good >"state.$2"; sync ;;
get-state) cat "state.$2" 2>/dev/null || echo good ;;
set-state) echo "$3" >"state.$2"; sync ;;
esac
"""
BOOTED = """[Unit]
Description=The slot that this boot is from
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'mkdir -p /run/slot && echo "BOOTED=$(cat /srv/rauc/primary)" >/run/slot/environment'
[Install]
WantedBy=multi-user.target
"""
RAUC = """[Unit]
Requires=slot.service
After=slot.service
[Service]
EnvironmentFile=/run/slot/environment
ExecStart=
ExecStart=/usr/bin/rauc --mount=/run/rauc service --override-boot-slot=${BOOTED}
"""
POS = "[Unit]\nDescription=POS\n[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
CONFIG = f'[product.{PRODUCT}]\nbackend = "rauc"\nunit = "pos.service"\nuser = "till"\nhealth = ["/srv/check"]\n'


class Checks(Protocol):
    """Takes what was found."""

    def check(self, what: str, ok: bool, detail: str = "") -> None: ...
    def same(self, what: str, expected: object, found: object) -> None: ...


class WholeSystem:
    """The guest with two slots.

    Args:
        guest: with the packages license-agent, rauc and rauc-service installed.
        checks: takes what was found.
        papers: what raucpapers.py has made, in the guest; the same on the host.
    """

    def __init__(self, guest: Guest, checks: Checks, here: Path, papers: str = "/payload/raucs") -> None:
        self.guest, self.checks, self.papers = guest, checks, papers
        self.names = json.loads((here / "names.json").read_text())

    def prepare(self) -> None:
        """Makes slots, bootloader, POS and configuration."""
        guest = self.guest
        guest.run("mkdir -p /srv/rauc /srv/before /etc/rauc /etc/systemd/system/rauc.service.d")
        guest.run(
            "cd /etc/license-agent && for f in installer.toml update-trust.json; do ! test -e $f || mv $f /srv/before/; done"
        )
        guest.run("cp /usr/lib/os-release /srv/before/")
        for text, path, mode in (
            (SYSTEM_CONF, "/etc/rauc/system.conf", 0o644),
            (BOOTLOADER, "/srv/rauc/bootloader", 0o755),
            ("A\n", "/srv/rauc/primary", 0o644),
            (BOOTED, "/etc/systemd/system/slot.service", 0o644),
            (RAUC, "/etc/systemd/system/rauc.service.d/slot.conf", 0o644),
            (POS, "/etc/systemd/system/pos.service", 0o644),
            ("#!/bin/sh\nid -un\nexec test ! -e /srv/sick\n", "/srv/check", 0o755),
            (CONFIG, "/etc/license-agent/installer.toml", 0o644),
        ):
            guest.put(text.encode(), path, mode)
        guest.run(
            f"""set -e
            cp {self.papers}/keyring.pem /etc/rauc/
            install -m 644 {self.papers}/update-trust.json /etc/license-agent/update-trust.json
            truncate -s 1M /srv/rauc/a.img /srv/rauc/b.img
            printf 'IMAGE_VERSION=1.0\\nBUILD_ID=b1.0\\n' >>/usr/lib/os-release
            cp -R {self.papers}/staged /var/lib/license-agent-updater/
            chown -R license-agent-updater: /var/lib/license-agent-updater/staged
            # A core would take back a trial that it has not begun.
            systemctl disable -q --now license-agent license-agent-pos.socket license-agent-admin.socket
            systemctl stop license-agent-installer license-agent-apply.path
            truncate -s 64M {INSTALLER_DISK} && mke2fs -q -F {INSTALLER_DISK}
            echo '{INSTALLER_DISK} /var/lib/license-agent-installer ext4 loop 0 0' >>/etc/fstab
            mkdir -p /var/lib/license-agent-installer && systemctl daemon-reload
            mount /var/lib/license-agent-installer && chmod 700 /var/lib/license-agent-installer
            rmdir /var/lib/license-agent-installer/lost+found
            systemctl start license-agent-apply.path
            systemctl enable -q --now slot pos""",
            timeout=READY_S,
        )

    def leave(self) -> None:
        """Makes the guest what it was before `prepare`."""
        self.guest.run(
            """set -e
            systemctl disable -q --now pos slot
            systemctl stop rauc license-agent-installer license-agent-apply.path
            umount /var/lib/license-agent-installer
            sed -i '/installer.ext4/d' /etc/fstab
            cat /srv/before/os-release >/usr/lib/os-release
            rm -rf /etc/rauc /etc/systemd/system/rauc.service.d
            rm -f /etc/systemd/system/pos.service /etc/systemd/system/slot.service
            rm -f /etc/license-agent/installer.toml /etc/license-agent/update-trust.json
            rm /srv/before/os-release
            ls -A /srv/before | while read -r file; do mv /srv/before/"$file" /etc/license-agent/; done
            systemctl daemon-reload
            systemctl enable -q --now license-agent-pos.socket license-agent-admin.socket license-agent
            systemctl start license-agent-apply.path""",
            timeout=READY_S,
        )
        for sha256 in self.names.values():
            self.guest.run(f"rm -rf /var/lib/license-agent-updater/staged/{sha256}")

    def order(self, kind: str, package: str = "") -> dict[str, object]:
        """The installer's answer to an order."""
        sha256 = self.names[package] if package else ""
        done = self.guest.run(f"python3 -B {PROBE} {kind} {PRODUCT} {sha256}", user="license-agent", timeout=READY_S)
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    def running(self) -> str:
        """Version and state of the system, as the installer says it."""
        found = self.order("products")
        products = found.get("products")
        if not isinstance(products, list):
            return str(found)
        running = products[0]["running"]
        return f"{running and running['version']} {products[0]['state']}"

    def booted(self) -> str:
        """Which slot this boot is from."""
        return self.guest.run("cat /run/slot/environment").stdout.strip()

    def refusals(self) -> None:
        """Bundles that may not be installed."""
        for name, text in (("plain", "format verity or crypt"), ("stranger", "signature"), ("oven", "for 'oven'")):
            answer = self.order("prepare", name)
            self.checks.check(f"the bundle '{name}' is refused", answer.get("code") == "bundle-refused", str(answer))
            self.checks.check("with the reason", text in str(answer.get("text")), str(answer))

    def update(self) -> None:
        """An update with its restart, a power cut in the trial, and the way back."""
        guest, checks = self.guest, self.checks
        checks.same("what runs, the image says", "1.0 idle", self.running())
        self.refusals()
        checks.same("a verity bundle is prepared", "Prepared", self.order("prepare", "good")["answer"])
        checks.same("and starts nothing", "A", guest.run("cat /srv/rauc/primary").stdout.strip())
        before = guest.boot_id
        checks.check("it is switched to", self.order("switch", "good").get("restarted") is True)
        guest.await_restart(before)
        checks.same(
            "the machine has restarted into the other slot", "BOOTED=B", guest.run("cat /run/slot/environment").stdout.strip()
        )
        image = guest.run("head -c 3 /srv/rauc/b.img").stdout
        checks.same("which RAUC has written, through dm-verity", "2.0", image)
        guest.power_cut()
        guest.boot()
        checks.same("after a power cut the trial goes on", "1.0 proving", self.running().replace("switched", "proving"))
        guest.run("touch /srv/sick")
        checks.check("a system that is sick proves nothing", self.order("prove").get("ok") is False)
        guest.run("rm /srv/sick")
        proved = self.order("prove")
        checks.check("one that works is proved", proved.get("ok") is True, str(proved))
        checks.same("and committed", "Committed", self.order("commit")["answer"])
        checks.same(
            "the bootloader may go on starting it", "good", guest.run("/srv/rauc/bootloader get-state B").stdout.strip()
        )
        checks.same("it is the version that runs", "2.0 idle", self.running())
        before = guest.boot_id
        checks.same("the way back is open", "RolledBack", self.order("roll_back")["answer"])
        guest.await_restart(before)
        checks.same("and leads to the slot before", "BOOTED=A", self.booted())
        checks.same("whose version runs", "1.0 idle", self.running())
        denied = guest.run("journalctl -b -k --no-pager | grep -i 'apparmor=.DENIED' | grep license-agent || true").stdout
        checks.same("no profile has denied anything", "", denied.strip())
