"""The life of the packages in a booted guest: install, enroll, sell, rotate, upgrade, break, repair, attack, remove.

Each step does what an administrator, a till or an attacker would do, with the installed programs. `scripts/e2e` calls this.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e import administration, rauc, selfupdate, updates
from tests.e2e.guest import Guest, Result
from tests.e2e.hostserver import HostServer, held_port, listening
from tests.e2e.image import SUITE, SUITES, build
from tests.e2e.report import Report
from tests.e2e.vendor import PRODUCT, Vendor
from tests.support.waiting import READY_S

PROBES = Path(__file__).parent / "probes"
SERVER, OTHER = "10.0.2.100", "10.0.2.101"
"""All that the guest's network holds: the license server, and a host that is none of the agent's business."""
DIRECTORY = "/var/lib/license-server"
CORE, LINK, INSTALLER, LICENSE_SERVER = "license-agent", "license-agent-link", "license-agent-installer", "license-server"
UPDATER = "license-agent-updater"
UNITS = (CORE, LINK, INSTALLER, UPDATER, LICENSE_SERVER)
CLIENT = "license-agent-client --deadline 60"
AUDIT_LOG = "/var/log/license-agent/audit.log"
LANDLOCK = {"bookworm": 2, "trixie": 6}
"""The ABI that the kernel of each release has at least."""
APPLY, POS_CHECK = "license-agent-apply", f"license-agent-pos-check@{PRODUCT}"
EXPOSURE = {CORE: 0.5, LINK: 1.3, INSTALLER: 2.0, UPDATER: 0.5, APPLY: 1.0, POS_CHECK: 2.0, LICENSE_SERVER: 2.0}
"""The most that `systemd-analyze security` may say; the first two are the project's measures."""
COMPARED = ("systemd-journald", "systemd-logind", "dbus", "prometheus-node-exporter")

DOORS = ("pos", "admin", "link", "installer", "updater")
MODES = {
    "/etc/license-agent": "755 root root",
    "/etc/license-agent/config.toml": "600 license-agent license-agent",
    "/etc/license-agent/link.toml": "644 root root",
    "/var/lib/license-agent": "711 license-agent license-agent",
    "/var/lib/license-agent-key": "700 license-agent license-agent",
    "/var/log/license-agent": "750 license-agent license-agent",
    "/run/license-agent": "755 root root",
    "/run/license-agent/pos.sock": "666 root root",
    "/run/license-agent/admin.sock": "660 root license-agent-admin",
    "/run/license-agent/link.sock": "660 license-agent license-agent-updater",
    "/run/license-agent/installer.sock": "600 license-agent root",
    "/run/license-agent/updater.sock": "600 license-agent root",
    "/var/lib/license-agent-updater": "700 license-agent-updater license-agent-updater",
    "/usr/bin/license-agent": "755 root root",
    "/usr/bin/license-agent-cli": "755 root root",
}
RELEASED_MODES = {path: mode for path, mode in MODES.items() if "updater" not in path} | {
    "/run/license-agent/link.sock": "600 license-agent root",
}
"""Those of release 0.1.0, which has no updater."""
STATE_MODES = {
    "/var/lib/license-agent/secrets.store": "600 license-agent license-agent",
    "/var/lib/license-agent/state.json": "600 license-agent license-agent",
    "/var/lib/license-agent/metrics.prom": "644 license-agent license-agent",
    "/var/log/license-agent/audit.log": "640 license-agent license-agent",
}
REFUSALS = {"EPERM", "EACCES", "EROFS", "EAFNOSUPPORT"}
"""How a sandbox refuses. ENOENT is none: a test that names a missing file shows nothing."""

# What an attacker tries, and who can do it outside of the sandbox (so that the attempt is known to be a real one).
BY_ROOT, BY_USER = "root", "user"
ATTEMPTS = {
    "read /etc/shadow": BY_ROOT,
    "read another process's memory (/proc)": BY_USER,
    "read another process's memory (process_vm_readv)": BY_USER,
    "trace another process": BY_USER,
    "start a program": BY_USER,
    "mount": BY_ROOT,
    "open a raw socket": BY_ROOT,
    "open a packet socket": BY_ROOT,
    "connect to a host that is not the server": BY_USER,
    "give orders to systemd": BY_ROOT,
    "speak on D-Bus": BY_USER,
    "write to /etc": BY_ROOT,
    "write to /usr": BY_ROOT,
    "write to /etc/license-agent": BY_ROOT,
    "write to /var/tmp": BY_USER,
    "write to /run": BY_ROOT,
    "write to /var/lib": BY_ROOT,
    "load a module": BY_ROOT,
    "make a user namespace": BY_USER,
    "map memory that is writable and executable": BY_USER,
    "set the clock": BY_ROOT,
    "read the disk's device": BY_ROOT,
}
HIDDEN, BY_NUMBER = "read another process's memory (/proc)", "read another process's memory (process_vm_readv)"
SOCKETS = ("give orders to systemd", "speak on D-Bus")
DISK, ELSEWHERE, SERVED = "read the disk's device", "connect to a host that is not the server", "connect to the server"
GRANTED = {
    # What it is for: systemd over its private socket, RAUC over D-Bus.
    APPLY: SOCKETS,
    # A product's own program, whatever that is; what it writes to /var/tmp is gone with it.
    POS_CHECK: ("start a program", "map memory that is writable and executable", "write to /var/tmp"),
}
"""What these units are allowed of all that."""
NOT_FOR_LINK = ("read config.toml", "read the sealed store", "read the audit log", "write to the state directory")
"""The core's own things, which the link cannot reach."""


class Scenario:
    """One guest and what has been seen in it.

    Args:
        guest: booted, with old and new packages on the payload.
        server: the license server that it reaches.
        report: takes the checks.
        quick: leave out what takes long, in steps that are not left out as a whole.
        first: which packages are installed first, "old" or "new".
        web_port: of loopback, which the guest reaches as the vendor's web server.

    Attributes:
        vendor: publishes updates; None before the first step about them.
    """

    def __init__(self, guest: Guest, server: HostServer, report: Report, quick: bool, first: str, web_port: int) -> None:
        self.guest = guest
        self.quick = quick
        self.first = first
        self.packages = "license-agent" if quick else "license-agent license-agent-server"
        self.server = server
        self.report = report
        self.check, self.same = report.check, report.same
        self.agent_id = ""
        self.web_port = web_port
        self.vendor: Vendor | None = None

    # What the people of this story do

    def sh(self, command: str, *, user: str | None = None, timeout: float = READY_S, check: bool = True) -> Result:
        return self.guest.run(command, user=user, timeout=timeout, check=check)

    def out(self, command: str, **options: Any) -> str:
        return self.sh(command, **options).stdout.strip()

    def till(self, user: str = "till") -> dict[str, Any]:
        done = self.sh(
            "PYTHONPATH=/payload/client python3 -B /payload/probes/till.py /srv/till/license", user=user, check=False
        )
        if done.status:
            raise AssertionError(f"the till's program ended with {done.status}: {done.stderr[-500:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def till_is_served(self, when: str) -> None:
        answer = self.till()
        self.check(f"a till validates its license {when}", answer.get("valid") is True, answer)

    def until(self, what: str, seen: Callable[[], bool], within_s: float = READY_S) -> None:
        ends = time.monotonic() + within_s
        while not (good := seen()) and time.monotonic() < ends:
            time.sleep(0.5)
        self.check(what, good)

    def active(self, unit: str) -> None:
        self.until(f"{unit} is active", lambda: self.out(f"systemctl is-active {unit}", check=False) == "active")

    def pid(self, unit: str = CORE) -> int:
        return int(self.out(f"systemctl show -P MainPID {unit}"))

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.out("license-agent-cli --json status", check=False))
        return told

    def selling(self, work: Callable[[], None], what: str, pause_s: float = 0.1) -> None:
        """Does something while a till validates again and again, with a pause between two validations."""
        self.sh("rm -f /run/till.stop")
        till = self.guest.background(
            f"PYTHONPATH=/payload/client python3 -B /payload/probes/till.py /srv/till/license /run/till.stop {pause_s}",
            user="till",
        )
        time.sleep(2)
        work()
        self.active(CORE)
        time.sleep(3)
        self.sh("touch /run/till.stop")
        status = till.wait(READY_S)
        output = till.output().strip()
        told = json.loads(output) if status == 0 else {}
        self.check(
            f"not one failed request through {what} (deadline 120 s, emulated)",
            told.get("failed") == 0 and told["validations"] > 3,
            output[-400:],
        )

    def denials(self) -> list[str]:
        lines = self.out(
            "journalctl -b --no-pager -o cat | grep -aE 'apparmor=\"DENIED\"|type=1326|audit: SECCOMP' | sort -u || true"
        )
        return [line for line in lines.splitlines() if "license" in line]

    def no_denials(self) -> None:
        found = self.denials()
        self.check("no denial of AppArmor or seccomp in the journal so far", not found, "\n".join(found[:10]))

    # The steps

    def install(self) -> None:
        self.use_repository(self.first)
        self.apt(f"install {self.packages}")
        self.active(CORE)
        self.listening(tuple(name for name in DOORS if name != "updater") if self.released else DOORS)
        if not self.quick:
            waits = self.out("systemctl is-active license-server", check=False)
            self.same("the server waits for its directory", "inactive", waits)
            self.modes({DIRECTORY: "700 license-server license-server"})
            self.same(
                "license-server has no shell", "/usr/sbin/nologin", self.out("getent passwd license-server").split(":")[-1]
            )
        for user in (CORE, LINK) if self.released else (CORE, LINK, UPDATER):
            self.same(f"{user} has no shell", "/usr/sbin/nologin", self.out(f"getent passwd {user}").split(":")[-1])
        self.check("the agent's user may use the TPM", "tss" in self.out("id -nG license-agent").split())
        self.modes(RELEASED_MODES if self.released else MODES)
        self.same("nothing failed", "", self.out("systemctl --failed --no-legend --plain"))
        pages = self.out("ls /usr/share/man/man?/license-agent* | wc -l")
        self.same("manual pages are there", 4, int(pages))
        told = self.out("license-agent-cli status", check=False)
        self.check("status says what to do next", "license-agent-cli provision" in told, told)

    @property
    def released(self) -> bool:
        """Whether what is installed first is release 0.1.0, which has packages for Debian 12 only."""
        return self.first == "old" and self.guest.suite == "bookworm"

    def listening(self, names: tuple[str, ...]) -> None:
        for unit in (f"license-agent-{name}.socket" for name in names):
            self.same(f"{unit} listens", "active", self.out(f"systemctl is-active {unit}", check=False))

    def modes(self, wanted: dict[str, str]) -> None:
        for path, mode in wanted.items():
            self.same(f"{path}", mode, self.out(f"stat -c '%a %U %G' {path}", check=False))

    def apt(self, what: str) -> None:
        self.sh(f"DEBIAN_FRONTEND=noninteractive apt-get -y {what}", timeout=500)

    def use_repository(self, name: str) -> None:
        self.sh(f"echo 'deb [trusted=yes] file:/payload/{name} ./' >/etc/apt/sources.list && apt-get update -q")

    def enroll(self) -> None:
        self.guest.join_network()
        pin, claim = self.server.run("root-pin"), self.server.run("claim", "make")
        self.guest.put(claim.encode(), "/root/claim", 0o600)
        provision = f"license-agent-cli provision --server https://{SERVER}:8443 --root {pin} --claim @/root/claim"
        if not self.quick:
            refused = self.sh(provision, check=False)
            self.check("the link reaches no address that the administrator has not named", refused.status != 0, refused.stderr)
        self.sh(
            "mkdir -p /etc/systemd/system/license-agent-link.service.d && printf '[Service]\\nIPAddressAllow=%s\\n'"
            f" {SERVER} >/etc/systemd/system/license-agent-link.service.d/server.conf && systemctl daemon-reload;"
            "systemctl stop license-agent-link.service"
        )
        self.check("provision", True, self.out(provision))
        self.until("the agent has a secret", lambda: "active" in json.dumps(self.secrets()).lower())
        self.agent_id = str(self.status()["agent_id"])
        self.modes(STATE_MODES)

    def secrets(self) -> Any:
        return json.loads(self.out("license-agent-cli --json secrets", check=False) or "[]")

    def sell(self) -> None:
        self.sh("sed -i 's/^# allowed_uids = .*/allowed_uids = [\"till\"]/' /etc/license-agent/config.toml")
        self.sh("license-agent check-config && systemctl reload license-agent")
        token = self.server.run("issue", "--agent", self.agent_id, "--feature", "fuel", "--expires", "+30d")
        self.sh("mkdir -p /srv/till")
        self.guest.put(token.encode(), "/srv/till/license")
        self.until("the agent knows the till after a reload", lambda: self.till().get("valid") is True)
        self.till_is_served("after enrollment")
        answer = self.till("stranger")
        self.check("a stranger is refused", "FORBIDDEN" in answer.get("text", ""), answer)
        self.same("AppArmor's profile is enforced", f"{CORE} (enforce)", self.out(f"cat /proc/{self.pid()}/attr/current"))
        self.same("the core has no capability", "0" * 16, self.field("CapEff"))
        self.same("the core may not gain privileges", "1", self.field("NoNewPrivs"))
        confinement = self.status().get("confinement", {})
        self.check("the core has locked itself", confinement.get("exec_forbidden") is True, confinement)
        least = LANDLOCK[self.guest.suite]
        self.check(f"Landlock is in force, ABI {least} or later", (confinement.get("landlock_abi") or 0) >= least, confinement)
        pids = [(json.loads(line).get("actor") or {}).get("pid", 0) for line in self.out(f"cat {AUDIT_LOG}").splitlines()]
        self.check("the audit log has PIDs of peers", any(pid > 1 for pid in pids), pids[-20:])
        self.check(
            "memory that root cannot read is in use",
            "secretmem" in self.out(f"grep -a secretmem /proc/{self.pid()}/maps", check=False),
        )

    def field(self, name: str) -> str:
        return self.out(f"sed -n 's/^{name}:\\s*//p' /proc/{self.pid()}/status")

    def rotate(self) -> None:
        before = json.dumps(self.secrets())
        self.selling(lambda: self.check("rotate", True, self.out("license-agent-cli rotate")), "a rotation")
        self.check("there is a new secret", json.dumps(self.secrets()) != before)
        self.till_is_served("after the rotation")
        if self.quick:
            return
        self.until("the link has left by itself", lambda: self.out(f"systemctl is-active {LINK}", check=False) != "active")

    def restart_and_upgrade(self) -> None:
        before = self.out("dpkg-query -W -f '${Version}' license-agent")
        if not self.quick:
            self.selling(self.restart, "systemctl restart")

        def upgrade() -> None:
            self.use_repository("new")
            self.apt(f"install {self.packages}")

        self.selling(upgrade, "the upgrade of the package")
        self.listening(DOORS)
        after = self.out("dpkg-query -W -f '${Version}' license-agent")
        self.check("another version is installed", before != after, f"{before} -> {after}")
        self.same("only its tree is left", after, self.out("ls /usr/lib/license-agent"))
        kept = self.out("grep -c '^allowed_uids = ' /etc/license-agent/config.toml", check=False)
        self.same("the configuration is the administrator's", "1", kept)
        self.modes(MODES)
        self.reload_a_broken_file()

    def reload_a_broken_file(self) -> None:
        """Not before the upgrade: release 0.1.0 takes a reload for done once it is asked for."""
        self.sh("cp -p /etc/license-agent/config.toml /root/config.toml && echo '[nonsense]' >>/etc/license-agent/config.toml")
        refused = self.sh("systemctl reload license-agent", check=False)
        self.check("a reload of a broken file fails", refused.status != 0, refused)
        told = self.out("license-agent-cli status", check=False)
        self.check("status names the broken file", "the configuration on disk is refused" in told, told)
        self.same("the agent goes on", "active", self.out(f"systemctl is-active {CORE}", check=False))
        self.sh("cat /root/config.toml >/etc/license-agent/config.toml && systemctl reload license-agent")

    def restart(self) -> None:
        self.sh("systemctl restart license-agent", timeout=READY_S)

    def client(self) -> None:
        """The client's package, as a shop's own program uses it: by the command, and by the system's Python."""
        self.use_repository("new")
        self.apt("install license-agent-client")
        self.same("the client's package asks for no restart", "active", self.out(f"systemctl is-active {CORE}"))
        told = self.asks("validate @/srv/till/license")
        self.check("the command validates a token file", told[0] == 0 and told[1]["valid"] is True, told)
        # The license was issued again at the rotation, so the agent holds it.
        told = self.asks("require fuel")
        self.check("a feature is asked for without a token", told[0] == 0 and told[1]["reason"] == "ok", told)
        told = self.asks("require bakery")
        self.check("a feature that nobody has licensed is refused", told[0] == 1 and told[1]["reason"] == "no_license", told)
        told = self.asks("licenses")
        self.check("the license is listed", told[0] == 0 and [one["features"] for one in told[1]] == [["fuel"]], told)
        self.same("a stranger is refused by the command", 4, self.asks("require fuel", user="stranger")[0])
        self.same("a disk that is full is no answer", 2, self.sh(f"{CLIENT} ping >/dev/full", user="till", check=False).status)
        self.limit_the_till()
        program = "import license_agent_client as c; print(c.LicenseClient(deadline=60).require('fuel').valid, c.__file__)"
        told = self.out(f'cd / && python3 -c "{program}"', user="till")
        self.same(
            "the system's Python has the library", "True /usr/lib/python3/dist-packages/license_agent_client/__init__.py", told
        )
        page = self.sh("test -e /usr/share/man/man1/license-agent-client.1.gz", check=False)
        self.same("its manual page is there", 0, page.status)
        self.apt("purge license-agent-client")
        left = self.out(
            "ls -d /usr/bin/license-agent-client /usr/lib/python3/dist-packages/license_agent_client 2>/dev/null || true"
        )
        self.same("a purge leaves nothing of the client", "", left)
        self.till_is_served("without the client's package")

    def asks(self, what: str, user: str = "till") -> tuple[int, Any]:
        """Exit status and answer of the command."""
        done = self.sh(f"{CLIENT} {what}", user=user, check=False)
        return done.status, json.loads(done.stdout) if done.stdout.strip() else done.stderr

    def limit_the_till(self) -> None:
        """A till learns of its own products only; the license of this story names none."""
        self.sh("cp -p /etc/license-agent/config.toml /root/config.toml")
        self.sh("printf '[pos.licenses]\\ntill = [\"forecourt\"]\\n' >>/etc/license-agent/config.toml")
        self.sh("license-agent check-config && systemctl reload license-agent")
        told = self.asks("require fuel")
        self.check(
            "a till does not learn of another product's license", told[0] == 1 and told[1]["reason"] == "no_license", told
        )
        self.sh("cat /root/config.toml >/etc/license-agent/config.toml && systemctl reload license-agent")
        told = self.asks("require fuel")
        self.check("without the limit it does", told[0] == 0, told)

    def hang(self) -> None:
        self.sh(
            "mkdir -p /run/systemd/system/license-agent.service.d && printf '[Service]\\nWatchdogSec=10s\\n'"
            " >/run/systemd/system/license-agent.service.d/quick.conf && systemctl daemon-reload"
            " && systemctl restart license-agent"
        )
        before = self.pid()
        self.sh(f"kill -STOP {before}")
        self.until("the watchdog replaces a daemon that hangs", lambda: self.pid() not in (0, before))
        self.active(CORE)
        self.check(
            "the journal says so",
            "watchdog" in self.out("journalctl -b -u license-agent --no-pager | grep -i watchdog").lower(),
        )
        self.sh("rm -r /run/systemd/system/license-agent.service.d && systemctl daemon-reload")
        self.till_is_served("after the watchdog")

    def killed(self) -> None:
        def kill() -> None:
            self.sh(f"kill -9 {self.pid()}")
            self.active(CORE)

        self.selling(kill, "kill -9")

    def survive(self) -> None:
        self.sh("rm -f /run/till.stop")

        def crash() -> None:
            before = int(self.out("systemctl show -P NRestarts license-agent"))
            for _ in range(10):
                self.until("it is there to be killed", lambda: self.pid() != 0)
                self.sh(f"kill -9 {self.pid()}", check=False)
                time.sleep(1)
            crashes = int(self.out("systemctl show -P NRestarts license-agent")) - before
            self.check("at least nine restarts were counted", crashes >= 9, crashes)

        self.selling(crash, "ten crashes in a row")
        self.active(CORE)
        self.sh("cp -a /etc/license-agent/config.toml /root/ && echo 'nonsense = 1' >>/etc/license-agent/config.toml")
        self.sh("systemctl restart license-agent")
        answer = self.till()
        self.check("with a broken configuration tills are told so", "misconfigured" in json.dumps(answer).lower(), answer)
        self.check("the journal names the key", "nonsense" in self.out("journalctl -b -u license-agent --no-pager | tail -20"))
        self.sh("cp -a /root/config.toml /etc/license-agent/config.toml")
        self.until("it comes back by itself once that is repaired", lambda: self.till().get("valid") is True)
        self.same("no socket was lost", "active", self.out("systemctl is-active license-agent-pos.socket"))

    def metrics(self) -> None:
        self.sh("systemctl start prometheus-node-exporter")
        self.until(
            "node_exporter answers", lambda: bool(self.out("curl -fs http://127.0.0.1:9100/metrics | head -1", check=False))
        )
        told = self.out("curl -fs http://127.0.0.1:9100/metrics | grep -E '^license_agent|^node_textfile'")
        for name in (
            "secrets_active",
            "validations_total",
            "rotations_total",
            "tpm_available",
            "degraded_mode",
            "last_rotation",
        ):
            self.check(f"node_exporter shows license_agent_{name}", f"\nlicense_agent_{name} " in f"\n{told}")
        self.check("without an error of the collector", "node_textfile_scrape_error 0" in told)
        self.sh("systemctl stop prometheus-node-exporter")

    def reboot(self) -> None:
        self.guest.reboot()
        self.guest.join_network()
        self.active(CORE)
        self.till_is_served("after a reboot: the sealed state came back")
        self.no_denials()
        if self.quick:
            return
        self.sh("sync")
        self.guest.power_cut()
        self.guest.boot()
        self.guest.join_network()
        self.active(CORE)
        self.till_is_served("after a power cut")
        self.same("the audit log is whole", 0, self.sh("license-agent-cli audit verify", check=False).status)
        self.same("nothing failed", "", self.out("systemctl --failed --no-legend --plain"))

    def serve(self) -> None:
        """The server's own package, with a registry that was made elsewhere and its master key as a credential."""
        self.sh(
            f"cp -R /payload/server/. {DIRECTORY}/ && chown -R license-server: {DIRECTORY} && chmod -R go= {DIRECTORY}"
            " && mkdir -p /etc/credstore.encrypted /etc/systemd/system/license-server.service.d && systemd-creds encrypt"
            f" --name=license-server-master-key {DIRECTORY}/master.key /etc/credstore.encrypted/license-server-master-key"
            f" && rm {DIRECTORY}/master.key"
            " && printf '[Service]\\nLoadCredentialEncrypted=license-server-master-key\\n'"
            " >/etc/systemd/system/license-server.service.d/master-key.conf && systemctl daemon-reload"
        )
        self.kill_what_is_refused(LICENSE_SERVER)
        self.sh("systemctl start license-server", timeout=READY_S)
        self.active(LICENSE_SERVER)
        self.until("it is ready", lambda: self.sh("curl -fs http://127.0.0.1:9443/readyz", check=False).status == 0)
        keys = self.sh("curl -ksS https://127.0.0.1:8443/api/v1/key-set")
        self.check("it serves its key set by TLS", keys.stdout.startswith("eyJ"), keys.stdout[:40] or keys.stderr)
        label = self.out(f"cat /proc/{self.pid(LICENSE_SERVER)}/attr/current")
        self.same("AppArmor's profile is enforced", f"{LICENSE_SERVER} (enforce)", label)
        self.no_denials()
        self.sh("systemctl stop license-server")
        self.do_not_kill()

    def kill_what_is_refused(self, *units: str) -> None:
        """The units' filters answer what they refuse with an error, without a word in the journal: now they kill instead."""
        for unit in units:
            self.sh(
                f"mkdir -p /run/systemd/system/{unit}.service.d && printf '[Service]\\nSystemCallErrorNumber=kill\\n'"
                f" >/run/systemd/system/{unit}.service.d/strict.conf"
            )
        self.sh("systemctl daemon-reload")

    def do_not_kill(self) -> None:
        self.sh("rm -rf /run/systemd/system/license-*.service.d && systemctl daemon-reload")

    def strict(self) -> None:
        self.kill_what_is_refused(CORE, LINK)
        self.sh("systemctl stop license-agent-link.service")
        self.restart()
        self.active(CORE)
        self.sh("license-agent-cli rotate")
        self.till_is_served("where every refused system call kills")
        self.no_denials()
        self.do_not_kill()

    def exposure(self) -> None:
        for unit, most in EXPOSURE.items():
            if self.quick and unit == LICENSE_SERVER:
                continue
            found = self.exposure_of(unit)
            self.check(f"systemd-analyze security {unit}: at most {most}", found <= most, found)
        for unit in COMPARED:
            self.report.write(f"        for comparison: {unit} {self.exposure_of(unit)}")

    def exposure_of(self, unit: str) -> float:
        told = self.out(f"systemd-analyze security --no-pager {unit}.service")
        match = re.search(r"exposure level for .*: ([0-9.]+)", told)
        if match is None:
            raise AssertionError(told[-500:])
        return float(match[1])

    def attack(self) -> None:
        self.sh("install -m 0644 /payload/probes/*.py /usr/lib/license-agent/")
        # As root too: what is refused then is refused by the sandbox's lines and the profile, not for want of rights.
        for unit, user in (
            (CORE, CORE),
            (CORE, "root"),
            (LINK, LINK),
            (LINK, "root"),
            (INSTALLER, "root"),
            (UPDATER, UPDATER),
            (UPDATER, "root"),
            (APPLY, "root"),
            (POS_CHECK, "root"),
        ):
            if not self.quick or unit == user:
                self.attack_from(unit, user)
        for user in ("stranger", "till"):
            for path in (
                "/etc/license-agent/config.toml",
                "/var/lib/license-agent/secrets.store",
                "/var/lib/license-agent/tpm.objects",
                "/var/lib/license-agent/state.json",
                "/var/log/license-agent/audit.log",
            ):
                found = self.sh(f"cat {path}", user=user, check=False)
                self.check(
                    f"{user} cannot read {path}", found.status != 0 and "Permission denied" in found.stderr, found.stderr
                )
            found = self.sh("cat /dev/tpmrm0", user=user, check=False)
            self.check(f"{user} cannot open the TPM", "Permission denied" in found.stderr, found.stderr)
        sockets = " ".join(f"/run/license-agent/{name}.sock" for name in ("pos", "admin", "link", "installer", "updater"))
        inner = f"python3 -B /payload/probes/inner.py {sockets}"
        for user, doors in {
            "stranger": {"pos"},
            LINK: {"pos"},
            UPDATER: {"pos", "link"},
            CORE: {"pos", "link", "installer", "updater"},
        }.items():
            told = json.loads(self.out(inner, user=user))
            opened = {Path(path).stem for path, what in told.items() if what == "connected"}
            self.same(f"{user} comes in by", sorted(doors), sorted(opened))
            self.check("and is refused elsewhere by the modes", set(told.values()) <= {"connected", "EACCES"}, told)

    def attack_from(self, unit: str, user: str) -> None:
        """Tries everything in a copy of the unit: the same profile and lines, as `user`."""
        label = f"{unit} as {user}" if user == "root" and unit != INSTALLER else unit
        victim = self.guest.background(["python3", "-B", "/payload/probes/victim.py"], user=None if user == "root" else user)
        self.until("the victim is up", lambda: self.sh(f"test -s {victim.path}", check=False).status == 0)
        pid, address = victim.output().split()
        arguments = f"{pid} {address} {OTHER}:9999 {SERVER}:8443"
        free = {
            who: self.attempted(
                f"systemd-run --quiet --pipe --wait {option} python3 -B /payload/probes/attempts.py {arguments}"
            )
            for who, option in ((BY_ROOT, ""), (BY_USER, f"-p User={user}"))
        }
        attacker = f"attacker-{re.sub('[ @]', '-', label)}"
        self.sh(
            f"systemctl cat {unit}.service | sed -e '/^ExecStart=/c ExecStart=/usr/bin/python3 -IS"
            f" /usr/lib/license-agent/attempts.py {arguments}' -e '/^Sockets=/d' -e '/^Requires=/d' -e '/^Restart=/d'"
            f" -e 's/^Type=.*/Type=exec/' -e '/^WatchdogSec=/d' -e 's/^User=.*/User={user}/' -e 's/^Group=.*/Group={user}/'"
            f" >/run/systemd/system/{attacker}.service && systemctl daemon-reload && systemctl start {attacker}"
        )
        ended = f"systemctl is-active {attacker}"
        self.until("the attacker has tried", lambda: self.out(ended, check=False) in ("inactive", "failed"))
        self.same("and has come to the end", "success", self.out(f"systemctl show -P Result {attacker}"))
        caged = self.attempted(
            f"journalctl --sync; journalctl -b -u {attacker} -o cat --no-pager | grep -a '^ATTEMPTS' | tail -1"
        )
        self.same(f"{label}: every attempt was made", len(free[BY_ROOT]), len(caged))
        for attempt, who in ATTEMPTS.items():
            if attempt in GRANTED.get(unit, ()):
                continue
            possible = free[who].get(attempt) in ("done", "ENOEXEC")
            found = caged.get(attempt)
            good = possible and self.refused(unit, attempt, caged)
            self.check(f"{label} cannot {attempt}", good, f"outside {free[who].get(attempt)}, inside {found}")
        if unit == LINK:
            self.same(f"{label} can connect to the server", "done", caged.get(SERVED))
            for attempt in NOT_FOR_LINK:
                good = free[BY_ROOT].get(attempt) == "done" and caged.get(attempt) in REFUSALS
                self.check(
                    f"{label} cannot {attempt}", good, f"outside {free[BY_ROOT].get(attempt)}, inside {caged.get(attempt)}"
                )
        victim.signal(9)
        self.sh(f"rm /run/systemd/system/{attacker}.service && systemctl daemon-reload")

    def refused(self, unit: str, attempt: str, caged: dict[str, str]) -> bool:
        """Whether an attempt met the sandbox. A thing that is not there counts only where the sandbox is known to hide it."""
        found = caged.get(attempt)
        if attempt == HIDDEN and found == "ENOENT":
            # /proc does not even show the process; that it is there is told by the call that names it (EPERM, not ESRCH).
            return caged.get(BY_NUMBER) == "EPERM"
        if attempt == DISK and found == "ENOENT":
            return self.out(f"systemctl show -P PrivateDevices {unit}") == "yes"
        if attempt in SOCKETS and found == "ENOENT":
            return "/run" in self.out(f"systemctl show -P TemporaryFileSystem {unit}")
        if attempt == ELSEWHERE and found == "ETIMEDOUT":
            # IPAddressDeny= drops packets silently. That the network works is shown by the other address, if there is one.
            return caged.get(SERVED) == ("ETIMEDOUT" if unit == POS_CHECK else "done")
        return found in REFUSALS

    def attempted(self, command: str) -> dict[str, str]:
        found = re.search(r"ATTEMPTS (\{.*\})", self.out(command))
        if found is None:
            raise AssertionError(f"no attempts were told by: {command}")
        told: dict[str, str] = json.loads(found[1])
        return told

    def locks(self) -> None:
        """Exec, in the daemon's own process, with each of the locks alone, and with none."""
        for lock, profile, expected in (
            ("", "", "done"),
            ("seccomp", "", "EPERM"),
            ("landlock", "", "EACCES"),
            ("", "license-agent", "EACCES"),
        ):
            self.sh(
                "mkdir -p /run/systemd/system/license-agent.service.d && printf '[Service]\\nAppArmorProfile=%s\\nExecStart=\\n"
                f"ExecStart=/usr/bin/python3 -IS /usr/lib/license-agent/locked_daemon.py {lock}\\n' '{profile}'"
                " >/run/systemd/system/license-agent.service.d/locks.conf && rm -f /run/license-agent/try-exec"
                " && systemctl daemon-reload && systemctl restart license-agent"
                " && journalctl --sync && touch /run/license-agent/try-exec",
                timeout=READY_S,
            )
            name = lock or ("AppArmor" if profile else "no lock")
            seen = "journalctl -b -u license-agent -o cat --no-pager | grep -a '^EXEC' | tail -1"
            number = f"journalctl -b _PID={self.pid()} -o cat --no-pager | grep -a '^EXEC' | tail -1"
            self.until(f"{name}: exec was tried in the daemon", lambda n=number: bool(self.out(n, check=False)))
            told = json.loads(self.out(number or seen).removeprefix("EXEC "))
            for call in ("execve", "execveat"):
                self.same(f"{name} alone, {call} in the daemon's process", expected, told[call])
        self.sh(
            "rm -r /run/systemd/system/license-agent.service.d && rm -f /run/license-agent/try-exec && systemctl daemon-reload"
        )
        self.sh("systemctl restart license-agent", timeout=READY_S)
        self.active(CORE)

    def back_out(self) -> None:
        version = self.out("sed -n '/^Package: license-agent$/,/^$/s/^Version: //p' /payload/old/Packages")

        def downgrade() -> None:
            self.use_repository("old")
            self.apt(f"install --allow-downgrades license-agent={version}")

        self.selling(downgrade, "the way back to the old package")
        self.same("the old version is back", version, self.out("dpkg-query -W -f '${Version}' license-agent"))
        self.till_is_served("with the old version")

    def whole_system(self) -> None:
        assert self.guest.payload is not None
        system = rauc.WholeSystem(self.guest, self.report, self.guest.payload / "raucs")
        system.prepare()
        system.update()
        system.leave()
        self.active(CORE)

    def remove(self) -> None:
        self.sh("rm -f /usr/lib/license-agent/*.py")
        self.apt("remove license-agent")
        self.check("no process is left", self.out("pgrep -u license-agent || true") == "")
        self.same("no socket is left", "", self.out("ls /run/license-agent 2>/dev/null || true"))
        self.same("no program is left", "", self.out("ls /usr/lib/license-agent /usr/bin/license-agent* 2>/dev/null || true"))
        self.check("what was sealed is kept", self.sh("test -e /var/lib/license-agent/secrets.store", check=False).status == 0)
        self.apt("install license-agent")
        self.active(CORE)
        self.till_is_served("after removal and a new installation")
        updates.put_away(self)
        self.apt("purge license-agent license-agent-server")
        left = self.out(
            "ls -d /etc/license-agent /var/lib/license-agent* /var/log/license-agent /etc/apparmor.d/license-agent*"
            " 2>/dev/null || true"
        )
        self.same("a purge leaves nothing of the agent", "", left)
        self.check("but the server's registry", self.sh(f"test -e {DIRECTORY}/server.db", check=False).status == 0)
        self.same("nothing failed", "", self.out("systemctl --failed --no-legend --plain"))


STEPS: dict[str, Callable[[Scenario], None]] = {
    "install both packages": Scenario.install,
    "set up the server and provision the machine": Scenario.enroll,
    "sell": Scenario.sell,
    "rotate": Scenario.rotate,
    "restart, and upgrade from an earlier commit": Scenario.restart_and_upgrade,
    "the client's package": Scenario.client,
    "updates of the POS: one that does not work, one that does": updates.short,
    "updates of the POS: attacks, forgery, power cuts, consent, a memory stick, full disks": updates.hostile,
    "updates of the POS: windows, other versions that do not work": updates.bad,
    "administrators with certificates, the REST interface, doctor": administration.short,
    "faults, each named by status and doctor": administration.long,
    "hang": Scenario.hang,
    "be killed": Scenario.killed,
    "crash ten times; a broken configuration": Scenario.survive,
    "metrics through node_exporter": Scenario.metrics,
    "no denial in all this": Scenario.no_denials,
    "reboot, and a power cut": Scenario.reboot,
    "where every refused system call kills": Scenario.strict,
    "the server's package": Scenario.serve,
    "the agent updates itself: a version that works, and one that does not": selfupdate.short,
    "the agent updates itself: broken packages, a held lock, power cuts": selfupdate.broken,
    "the agent updates itself: ways back, versions that do not work": selfupdate.long,
    "exposure": Scenario.exposure,
    "attacks from inside the services, and from other users": Scenario.attack,
    "exec, with each lock alone": Scenario.locks,
    "a whole system by RAUC": Scenario.whole_system,
    "back out": Scenario.back_out,
    "remove and purge": Scenario.remove,
}

LONG = (
    "updates of the POS: attacks, forgery, power cuts, consent, a memory stick, full disks",
    "updates of the POS: windows, other versions that do not work",
    "faults, each named by status and doctor",
    "hang",
    "be killed",
    "metrics through node_exporter",
    "reboot, and a power cut",
    "crash ten times; a broken configuration",
    "where every refused system call kills",
    "the server's package",
    "the agent updates itself: a version that works, and one that does not",
    "the agent updates itself: broken packages, a held lock, power cuts",
    "the agent updates itself: ways back, versions that do not work",
    "exec, with each lock alone",
    "a whole system by RAUC",
    "back out",
    "remove and purge",
)
"""Steps that `--quick` leaves out, unless `--from` or `--until` names one."""
ON_ONE = {"updates of the POS: one that does not work, one that does": "trixie"}
"""Steps that `--quick` takes on one release only: the demo and the integration tests install updates on Debian 12."""


def hold(guest: Guest) -> None:
    """Runs what is typed in the guest, line by line, until the input ends."""
    for line in sys.stdin:
        done = guest.run(line, check=False, timeout=600)
        print(done.stdout, done.stderr, f"[{done.status}]", sep="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Drive the packages through their life in a booted guest.")
    parser.add_argument("directory", type=Path, help="where image, disk and payload lie")
    parser.add_argument("--suite", choices=SUITES, default=SUITE, help="which Debian release the guest is")
    parser.add_argument("--until", choices=STEPS, help="stop after this step")
    parser.add_argument("--from", dest="begin", choices=STEPS, help="after 'sell', go on with this step")
    parser.add_argument("--quick", action="store_true", help=f"without: {', '.join(LONG)}; and without long ways in the others")
    parser.add_argument("--hold", action="store_true", help="keep the guest at the end, or where it failed, until Enter")
    options = parser.parse_args()
    report = Report(lambda line: print(line, flush=True))
    image = None
    try:
        with report.step("the guest"):
            image = build(options.directory / "image", options.suite)
        with (
            HostServer(options.directory / "server", SERVER) as server,
            listening() as other,
            held_port() as web,
            Guest(
                image,
                options.directory / "run",
                options.directory / "payload",
                reach={
                    f"{SERVER}:8443": server.port,
                    f"{OTHER}:9999": other,
                    f"{updates.ADDRESS}:{updates.PORT}": web,
                },
            ) as guest,
        ):
            with report.step("boot"):
                guest.boot()
                report.same("the guest is running", "running", guest.state)
            upgrades = options.begin in (None, "restart, and upgrade from an earlier commit")
            scenario = Scenario(guest, server, report, options.quick, "old" if upgrades else "new", web)
            try:
                for name, step in STEPS.items():
                    if options.quick and name not in (options.begin, options.until):
                        if name in LONG:
                            report.write(f"\n-- left out by --quick: {name}")
                            continue
                        if (suite := ON_ONE.get(name, options.suite)) != options.suite:
                            report.write(f"\n-- left out by --quick, which takes it on {suite} only: {name}")
                            continue
                    if options.begin and list(STEPS).index("sell") < list(STEPS).index(name) < list(STEPS).index(options.begin):
                        continue
                    with report.step(name):
                        step(scenario)
                    if name == options.until:
                        break
            except Exception:
                for line in guest.evidence():
                    report.write(line)
                raise
            finally:
                if options.hold:
                    hold(guest)
    except Exception as error:  # the report has it; what is left is to say how far it came
        report.write(f"\nended early by {type(error).__name__}")
    return report.summary()


if __name__ == "__main__":
    sys.exit(main())
