"""Updates of a POS application in the booted guest, with the installed programs, systemd and the profiles in force.

The vendor, its web server and the license server are on the host. In the guest a POS application runs from slots, as the user
`till`, and another program validates a license again and again through every switch.
"""

import contextlib
import json
import shlex
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.e2e import consent, hostilecheck
from tests.e2e.guest import GuestError
from tests.e2e.samplepos import BAD, GOOD, PRODUCTS, SETTINGS, SLOTS, UNIT, Bad
from tests.e2e.vendor import PRODUCT, Vendor
from tests.support.waiting import READY_S

if TYPE_CHECKING:
    from tests.e2e.scenario import Scenario

ADDRESS, PORT = "10.0.2.102", 443
"""The vendor's web server, as the guest knows it."""
ETC = "/etc/license-agent"
UPDATER = "license-agent-updater"
STAGED, OWN = "/var/lib/license-agent-updater", "/var/lib/license-agent-installer"
AUDIT_LOG = "/var/log/license-agent/audit.log"
JOURNAL = "/var/lib/license-agent/ota.json"
UNREPORTED = ("ordered", "delivered", "under-way", "installed")
"""States of an order at the license server that another one will follow by itself."""
WITHIN_S = 3 * READY_S
"""How long an update may take, with its way back: a version that hangs is waited for, and so is each answer of systemd's."""
SPARE_KB = 4096
"""What a disk that shall be full has beyond its content, before it is filled."""
PAUSE_S = 0.5
"""Between two validations, so that the till leaves the processor to what is tested."""


class Till:
    """The machine whose POS application is updated.

    Args:
        scenario: the guest, provisioned, and with a license.
        vendor: of the POS application.
    """

    def __init__(self, scenario: "Scenario", vendor: Vendor) -> None:
        self.scenario, self.vendor = scenario, vendor
        self.guest, self.server = scenario.guest, scenario.server
        self.check, self.same, self.until = scenario.check, scenario.same, scenario.until
        self.sh, self.out = scenario.sh, scenario.out

    # A machine with a POS application

    def set_up(self) -> None:
        """POS 1.0, and root's word on what may replace it."""
        first = self.vendor.publish("1.0", GOOD)
        slot = f"{SLOTS}/slots/a"
        self.guest.put(self.vendor.unpacked(first), "/root/pos.tar")
        self.sh(f"mkdir -p {slot} && tar -xf /root/pos.tar -C {slot} --no-same-owner && ln -s slots/a {SLOTS}/current")
        for name, data in (
            ("update-trust.json", self.vendor.trust(self.scenario.agent_id)),
            ("installer.toml", PRODUCTS.encode()),
            ("updates-ca.pem", self.vendor.ca),
        ):
            self.guest.put(data, f"{ETC}/{name}")
        self.guest.put(UNIT.encode(), "/etc/systemd/system/pos.service")
        ota = f'\n[upstream.ota]\nurl = "https://{ADDRESS}:{PORT}"\nca_file = "{ETC}/updates-ca.pem"\n'
        for name, text in (("link.toml", ota), ("config.toml", SETTINGS)):
            self.sh(f"printf %s {shlex.quote(text)} >>{ETC}/{name}")
        self.sh(
            f"printf '[Service]\\nIPAddressAllow={ADDRESS}\\n' >/etc/systemd/system/license-agent-link.service.d/updates.conf"
            " && systemctl daemon-reload && systemctl stop license-agent-link.service"
            " && systemctl enable --quiet pos.service && systemctl start pos.service && systemctl restart license-agent"
        )
        self.scenario.active("pos.service")
        self.same("the POS that was unpacked by hand runs", "1.0", self.runs())
        self.until("the agent knows it", lambda: self.running().get("version") == "1.0")

    # What one sees

    def runs(self) -> str:
        """The version that the process of the POS says it is, not what a file says."""
        return self.out(
            "python3 -Ic 'import socket; print(socket.create_connection((\"127.0.0.1\", 7700)).recv(64).decode())'", check=False
        )

    def ask_server(self) -> None:
        """Has the agent contact the license server. On a busy host the link may start too slowly for one attempt."""
        self.until("the agent speaks with its server", lambda: self.sh("license-agent-cli ota check", check=False).status == 0)

    def cli(self, what: str) -> Any:
        return json.loads(self.out(f"license-agent-cli --json {what}", timeout=READY_S))

    def running(self) -> dict[str, Any]:
        """What `ota status` says of the POS; empty as long as it says nothing."""
        done = self.sh("license-agent-cli --json ota status", check=False)
        found = json.loads(done.stdout)["running"] if done.status == 0 else []
        return next((dict(each) for each in found if each["product"] == PRODUCT), {})

    def journal(self) -> dict[str, Any]:
        """Where the update is: the agent's own file, because a command takes seconds here."""
        try:
            found: dict[str, Any] = json.loads(self.guest.get(JOURNAL))["update"]
        except (GuestError, json.JSONDecodeError):  # it may not be there yet
            return {}
        return found

    def newest(self) -> dict[str, Any]:
        """The newest line of the maintenance register."""
        (line,) = self.cli("ota history --count 1")["entries"]
        return dict(line)

    def _ended(self) -> tuple[str, str]:
        line = self.newest()
        return line["version"], line["outcome"]

    def said_by_server(self, *more: str) -> tuple[str, str]:
        """State and detail of the newest order at the license server, once the agent has reported how it ended.

        The report is a contact of its own, which a busy machine makes later than the last step's.

        Args:
            more: other states that will not stay.
        """
        found = ("", "")

        def ended() -> bool:
            nonlocal found
            lines = json.loads(self.server.run("ota", "status", self.scenario.agent_id, "--json"))["directives"]
            found = (lines[0]["state"], lines[0]["detail"]) if lines else ("", "")
            if waits := found[0] in (*UNREPORTED, *more):
                self.ask_server()
            return not waits

        self.until("the server knows how the newest order ended", ended)
        return found

    def settle(self) -> None:
        """Waits until the license server takes another order: as long as it believes that one goes on, it does not."""
        self.said_by_server("locked")

    # What is done

    def order(self, version: str, changed: dict[str, str] | None = None, *options: str) -> str:
        """Publishes a version and orders it; returns its path in the repository."""
        target = self.vendor.publish(version, GOOD | (changed or {}))
        self.settle()
        self.server.run("ota", "assign", self.scenario.agent_id, target, "--notice", "0", *options)
        return target

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Waits until an update that is begun within has ended, one way or the other."""
        before = self.journal().get("done", 0)
        yield
        self.until("the update ends", lambda: self.journal().get("done", 0) > before, WITHIN_S)

    def update(self, version: str, changed: dict[str, str] | None = None) -> dict[str, Any]:
        """Orders a version, and returns the register's line once the update has ended."""
        with self.ending():
            self.order(version, changed)
            self.ask_server()
        line = self.newest()
        self.same("the register's newest line is about it", version, line["version"])
        return line

    def good(self, version: str) -> None:
        """A version that works."""
        before = self.runs()
        line = self.update(version)
        found = (line["outcome"], line["before"], line["operator"], line["reason"])
        self.same(f"POS {before} to {version}", ("installed", before, "server", ""), found)
        self.same("it runs", version, self.runs())
        now = self.running()
        shown = (now["version"], now["in_trial"], now["previous"])
        self.same("ota status: it is committed, and the version before is kept", (version, False, before), shown)
        self.same("the license server says so", ("proved", ""), self.said_by_server())

    def bad(self, version: str, bad: Bad) -> None:
        """A version that does not."""
        before = self.runs()
        line = self.update(version, bad.files)
        self.same(f"POS {version} {bad.name}: it is taken back", "rolled-back", line["outcome"])
        for part in bad.reason:
            self.check(f"the register says why: {part}", part in line["reason"], line["reason"])
        self.same("the version before runs", before, self.runs())
        now = self.running()
        self.same("ota status: no trial", (before, False), (now["version"], now["in_trial"]))
        told, (state, detail) = self.journal()["step"], self.said_by_server()
        ended = "locked" if told == "locked" else "rolled-back"
        self.check("the license server says why", state == ended and bad.reason[0] in detail, (state, detail))
        recorded = self.sh(f"grep '\"ota.rollback\"' {AUDIT_LOG} | grep -q '\"{version}\"'", check=False)
        self.same("the audit log has it", 0, recorded.status)

    def window(self, version: str) -> None:
        """A version whose window is closed, and then open."""
        before, hour = self.runs(), int(self.out("date -u +%H"))

        def between(first: int, last: int) -> str:
            return f"mon-sun {(hour + first) % 24:02}:00-{(hour + last) % 24:02}:00 UTC"

        target = self.order(version, None, "--window", between(6, 8))
        self.ask_server()
        self.until("outside its window an update waits", lambda: (self.status()["waits"] or {}).get("code") == "window")
        self.same("and nothing was switched", before, self.runs())
        again = (self.scenario.agent_id, target, "--notice", "0", "--replace", "--window", between(-1, 4))
        self.server.run("ota", "assign", *again)
        self.ask_server()
        # The order that is replaced ends too, as withdrawn.
        self.until("within it, it is installed", lambda: self._ended() == (version, "installed"))
        self.same("and runs", version, self.runs())

    def forged(self, version: str) -> None:
        """A package that somebody has changed on the web server is refused, until the genuine one is there again."""
        before, attempts = self.runs(), self.journal()["attempts"]
        target = self.order(version)
        with self.ending():
            with self.vendor.forged(target):
                self.ask_server()
                self.hindered("a forged package is refused, with the reason", "digest-differs")
                self.same("nothing was switched", before, self.runs())
                self.same("and it is no failed attempt", attempts, self.journal()["attempts"])
            self.sh("license-agent-cli ota install --no-wait", timeout=READY_S)
        self.same("the genuine one is installed", ("installed", version), (self.newest()["outcome"], self.runs()))

    def hindered(self, what: str, *codes: str) -> None:
        """Waits until `ota status` says what keeps the update from going on, by one of these codes."""
        self.until(what, lambda: any(f"({code})" in (self.status()["problem"] or "") for code in codes))

    def status(self) -> dict[str, Any]:
        """What `ota status` says."""
        return dict(self.cli("ota status"))

    def cut(self, version: str, phase: str) -> None:
        """The plug is pulled in a phase of the installer's; then the machine comes up with a version that runs."""
        self.scenario.no_denials()  # the journal of the boot that is cut short
        before = self.runs()
        self.order(version)
        self.ask_server()
        seen = f'until grep -q \'"phase": "{phase}"\' {OWN}/state.json; do sleep 0.1; done'
        self.sh(seen, timeout=WITHIN_S)
        self.guest.power_cut()
        self.guest.boot()
        self.guest.join_network()
        self.scenario.active("pos.service")
        self.until("the update ends after the power cut", lambda: self.journal().get("step") in ("idle", "locked"), WITHIN_S)
        line, now = self.newest(), self.running()
        self.same(f"a power cut while it is {phase}: no trial is left", False, now["in_trial"])
        self.same("what runs is what ota status says", now["version"], self.runs())
        expected = {"installed": version, "rolled-back": before, "failed": before}
        self.check(
            "the register says how it ended, and why if it was taken back",
            line["version"] == version
            and now["version"] == expected[line["outcome"]]
            and bool(line["reason"]) is (line["outcome"] != "installed"),
            f"{line['outcome']} {line['reason']}",
        )
        self.scenario.till_is_served("after the power cut")

    def stick(self, version: str) -> None:
        """An update bundle from a memory stick, while the repository is out of reach."""
        target = self.order(version, None, "--notice", "2d")
        self.sh(f"ip route add unreachable {ADDRESS}/32")
        self.ask_server()
        self.sh("mkdir -p /media/usb && mount -t tmpfs stick /media/usb")
        self.guest.put(self.vendor.stick(self.scenario.agent_id, target), "/media/usb/pos.bundle", 0o600)
        self.sh("license-agent-cli ota_update --url /media/usb/pos.bundle", timeout=2 * READY_S)
        self.same("an update from a memory stick is installed", version, self.runs())
        line = self.newest()
        self.check("by root, as the register says", line["operator"] not in ("", "server"), line["operator"])
        self.sh(f"umount /media/usb && ip route del unreachable {ADDRESS}/32")
        self.same("the license server learns that it runs", "proved", self.said_by_server()[0])

    def full(self, version: str, place: str, owner: str, codes: tuple[str, ...]) -> None:
        """A disk without room for a package; once there is room, the update goes on.

        Args:
            place: the directory whose disk is full.
            owner: of the directory.
            codes: of which one says that there is no room.
        """
        before = self.runs()
        self.sh(
            f"mkdir -p /mnt/under && mount --bind {place} /mnt/under && mount --make-private /mnt/under"
            f" && mount -t tmpfs -o size=$(($(du -sk {place} | cut -f1) + {SPARE_KB}))k,mode=0700 small {place}"
            f" && cp -a /mnt/under/. {place}/ && chown {owner}: {place}"
            f" && {{ cat /dev/zero >{place}/full 2>/dev/null || test -s {place}/full; }}"
        )
        self.sh("systemctl stop license-agent-updater.service license-agent-installer.service")
        self.order(version)
        self.ask_server()
        self.hindered(f"a full disk below {place} holds the update up, and ota status says so", *codes)
        self.same("nothing was switched", before, self.runs())
        self.scenario.till_is_served("with a full disk")
        self.sh(f"rm {place}/full && cp -a {place}/. /mnt/under/ && umount {place} && umount /mnt/under")
        self.sh("systemctl stop license-agent-updater.service license-agent-installer.service")
        with self.ending():
            self.sh("license-agent-cli ota install --no-wait", timeout=READY_S)
        self.same("with room, it is installed", ("installed", version), (self.newest()["outcome"], self.runs()))

    def closing(self) -> None:
        """What must be so at a step's end."""
        self.scenario.no_denials()
        self.same("nothing failed", "", self.out("systemctl --failed --no-legend --plain"))


@contextlib.contextmanager
def till(scenario: "Scenario") -> Iterator[Till]:
    """The vendor, its web server, and the machine as it is set up once."""
    if scenario.vendor is None:
        place = scenario.server.directory.parent / "vendor"
        scenario.vendor = Vendor(place, scenario.server, ADDRESS)
    made = Till(scenario, scenario.vendor)
    with scenario.vendor.web(scenario.web_port):
        if made.sh(f"test -e {SLOTS}/current", check=False).status:
            made.set_up()
        yield made


def short(scenario: "Scenario") -> None:
    """One update that does not work, and one that does: then nothing is left that somebody should look at."""
    with till(scenario) as made:

        def work() -> None:
            made.bad("1.1", BAD[0])
            made.good("1.2")

        scenario.selling(work, "an update of the POS that is taken back, and one that works", PAUSE_S)
        scenario.no_denials()


def bad(scenario: "Scenario") -> None:
    """Windows, and versions that do not work, until updates are locked."""
    with till(scenario) as made:
        for number, version in enumerate(BAD):
            scenario.selling(partial(made.bad, f"2.0.{number}", version), f"an update that {version.name}", PAUSE_S)
        made.same("three failed attempts lock updates", "locked", made.journal()["step"])
        made.sh('license-agent-cli ota unlock --why "tried on purpose"')
        scenario.selling(lambda: made.window("2.1"), "an update that waits for its window", PAUSE_S)
        made.closing()


def hostile(scenario: "Scenario") -> None:
    """Attacks, forgery, power cuts, the shop's word, a memory stick and full disks."""
    with till(scenario) as made:
        hostilecheck.attacks(made, "1.3.0")
        hostilecheck.stays(made, "1.3.1")
        made.forged("1.4")
        for number, phase in enumerate(("staged", "switched", "proving")):
            made.cut(f"1.5.{number}", phase)
        consent.answers(made, "1.6")
        made.stick("1.7")
        made.full("1.8", STAGED, UPDATER, ("no-space",))
        made.full("1.9", OWN, "root", ("no-room",))
        made.closing()


def put_away(scenario: "Scenario") -> None:
    """Removes what an administrator has written for updates, which no package removes."""
    scenario.sh(f"rm -f {ETC}/update-trust.json {ETC}/installer.toml {ETC}/updates-ca.pem")
    scenario.sh("systemctl disable --quiet --now pos.service 2>/dev/null || true")
