"""A made-up machine for the checks of `doctor`: a tree with the files that Debian and the packages put there, all in order.

The units are the project's own, the audit log is a real one. What only a kernel or root could make (owners, devices, room,
answers of programs) is a table that a test changes.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cli.agent import Agent, NotPermitted
from cli.doctor.machine import Machine, Ran, Room, Stat
from tests.audittrail.madelog import Machine as Logged

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_800_000_000
CORE_UID, LINK_UID, MANAGE_UID, TSS, ADMINS, UPDATERS = 990, 989, 988, 110, 995, 987
STATE, LOG, RUN, ETC = "/var/lib/license-agent", "/var/log/license-agent", "/run/license-agent", "/etc/license-agent"
CORE, MANAGE = "license-agent.service", "license-agent-manage.service"
UNITS = (CORE, "license-agent-link.service", "license-agent-installer.service", "license-agent-updater.service", MANAGE,
         "license-agent-apply.service", "license-agent-apply.path",
         "license-agent-upgrade.service", "license-agent-upgrade.path",
         "license-agent-pos.socket", "license-agent-admin.socket", "license-agent-link.socket",
         "license-agent-installer.socket", "license-agent-updater.socket")  # fmt: skip
INSTALLER, OWN = "license-agent-installer.service", "/var/lib/license-agent-installer"
DAY = 86_400

FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\n"
    f"license-agent:x:{CORE_UID}:{CORE_UID}:License agent:{STATE}:/usr/sbin/nologin\n"
    f"license-agent-link:x:{LINK_UID}:{LINK_UID}:License agent, network:/:/usr/sbin/nologin\n"
    f"license-agent-manage:x:{MANAGE_UID}:{MANAGE_UID}:License agent, REST interface:/:/usr/sbin/nologin\n"
    "till:x:1000:1000::/home/till:/bin/bash\n",
    "/etc/group": f"root:x:0:\nlicense-agent:x:{CORE_UID}:\ntss:x:{TSS}:license-agent\n"
    f"license-agent-admin:x:{ADMINS}:license-agent-manage\nlicense-agent-manage:x:{MANAGE_UID}:\n"
    f"license-agent-updater:x:{UPDATERS}:\n",
    "/etc/hosts": "127.0.0.1 localhost\n192.0.2.10 license.example\n",
    f"{ETC}/config.toml": '[pos]\nallowed_uids = ["till"]\n[management]\nallowed_uids = ["license-agent-manage"]\n',
    f"{ETC}/manage.toml": f'[tls]\ncertificate = "{ETC}/manage-cert.pem"\nkey = "{ETC}/manage-key.pem"\n',
    f"{ETC}/link.toml": '[core]\nuser = "license-agent"\n[provisioning]\nallowed = false\n'
    '[upstream.server]\nurl = "https://license.example:8443"\npins = ["sha256:00"]\n'
    '[upstream.ota]\nurl = "https://license.example:8443"\npins = ["sha256:00"]\n',
    f"{ETC}/update-trust.json": '{"v": 1, "agent_id": "pos-001", "tuf_root": {"signed": {"expires": "2037-01-15T08:00:00Z"}}}',
    f"{ETC}/installer.toml": '[product.pos]\nbackend = "slots"\ndirectory = "/var/lib/pos"\nunit = "pos.service"\n',
    f"{OWN}/begun": "",
    f"{OWN}/state.json": '{"v": 1}\n',
    "/etc/systemd/system/license-agent-link.service.d/override.conf": "[Service]\nIPAddressAllow=192.0.2.10\n",
    "/etc/logrotate.conf": "weekly\nrotate 4\ninclude /etc/logrotate.d\n",
    "/etc/logrotate.d/dpkg": "/var/log/dpkg.log {\n\tmonthly\n}\n",
    "/sys/module/apparmor/parameters/enabled": "Y\n",
    "/sys/kernel/security/apparmor/profiles": "license-agent (enforce)\nlicense-agent-link (enforce)\n"
    "license-agent-installer (enforce)\nlicense-agent-manage (enforce)\nlicense-agent-apply (enforce)\n"
    "license-agent-upgrade (enforce)\nlicense-agent-updater (enforce)\nnginx (complain)\n",
    "/sys/class/tpm/tpm0/tpm_version_major": "2\n",
    "/sys/class/rtc/rtc0/since_epoch": f"{NOW}\n",
    "/proc/4711/attr/current": "license-agent (enforce)\n",
    "/proc/4712/attr/current": "license-agent-manage (enforce)\n",
    "/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 999 0 -2\n",
    "/proc/sys/fs/suid_dumpable": "0\n",
    "/usr/bin/prometheus-node-exporter": "",
    f"{STATE}/secrets.store": "sealed",
    f"{STATE}/state.json": json.dumps({"last_server_contact": NOW - 600}),
    f"{STATE}/metrics.prom": f"license_agent_certificate_ends {NOW + 60 * DAY}.0\n",
}

_CORE, _ROOT = (CORE_UID, CORE_UID), (0, 0)
STATS = {
    ETC: Stat("directory", 0o755, *_ROOT),
    f"{ETC}/config.toml": Stat("file", 0o600, *_CORE),
    f"{ETC}/link.toml": Stat("file", 0o644, *_ROOT),
    f"{ETC}/update-trust.json": Stat("file", 0o644, *_ROOT),
    f"{ETC}/installer.toml": Stat("file", 0o644, *_ROOT),
    f"{ETC}/manage.toml": Stat("file", 0o644, *_ROOT),
    f"{ETC}/manage-cert.pem": Stat("file", 0o644, *_ROOT),
    f"{ETC}/manage-key.pem": Stat("file", 0o640, 0, MANAGE_UID),
    STATE: Stat("directory", 0o711, *_CORE),
    f"{STATE}/secrets.store": Stat("file", 0o600, *_CORE),
    f"{STATE}/state.json": Stat("file", 0o600, *_CORE),
    f"{STATE}/metrics.prom": Stat("file", 0o644, *_CORE, mtime=NOW - 10),
    "/var/lib/license-agent-key": Stat("directory", 0o700, *_CORE),
    LOG: Stat("directory", 0o750, *_CORE),
    f"{LOG}/audit.log": Stat("file", 0o640, *_CORE),
    RUN: Stat("directory", 0o755, *_ROOT),
    f"{RUN}/pos.sock": Stat("socket", 0o666, *_ROOT),
    f"{RUN}/admin.sock": Stat("socket", 0o660, 0, ADMINS),
    f"{RUN}/link.sock": Stat("socket", 0o660, CORE_UID, UPDATERS),
    f"{RUN}/installer.sock": Stat("socket", 0o600, CORE_UID, 0),
    f"{RUN}/updater.sock": Stat("socket", 0o600, CORE_UID, 0),
    **{path: Stat("directory", 0o755, *_ROOT) for path in ("/", "/var", "/var/lib", "/var/lib/pos")},
    OWN: Stat("directory", 0o700, *_ROOT),
    f"{OWN}/begun": Stat("file", 0o600, *_ROOT),
    f"{OWN}/state.json": Stat("file", 0o600, *_ROOT),
    "/dev/tpmrm0": Stat("character device", 0o660, 0, TSS),
}
"""What a test without root cannot make. Every path of the agent is here: what is not, is not there."""
FROM_TABLE = (ETC, STATE, "/var/lib/license-agent-key", OWN, "/var/lib/pos", LOG, RUN, "/dev/")

STATUS: dict[str, Any] = {
    "health": {"verdict": "fine", "findings": []},
    "agent_id": "pos-001",
    "agent_version": "0.1.0",
    "backend": {"name": "tpm", "detail": "TPM 2.0", "available": True},
    "mode": "online",
    "server": {"url": "https://license.example:8443", "last_contact": NOW - 600, "failures": 0, "problem": "", "held": False,
               "certificate_ends": NOW + 60 * DAY},
    "time": NOW,
    "authentication": {"mode": "uid-only", "ca_ends": None, "ca_problem": ""},
    "updates": {"state": "idle", "running": [], "update": None, "waits": None, "paused": None, "problem": None, "attempts": 0,
                "failure": None, "rehearsal_overdue": False},
    "audit": {"seq": 100, "failing": False},
    "confinement": {"exec_forbidden": True, "landlock_abi": 2},
}  # fmt: skip


def unit(name: str, **changes: str) -> dict[str, str]:
    """A unit as `systemctl show` has it."""
    started = name.endswith((".socket", ".path")) or name in (CORE, MANAGE)
    return {
        "Id": name, "LoadState": "loaded", "ActiveState": "active" if started else "inactive", "SubState": "running",
        "UnitFileState": "enabled" if started else "static", "Result": "success", "NeedDaemonReload": "no", "NRestarts": "0",
        "MainPID": {CORE: "4711", MANAGE: "4712"}.get(name, "0"), **changes,
    }  # fmt: skip


@cache
def certificate(ends: int) -> str:
    """A certificate in PEM that ends at that time, seconds since 1970."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1).not_valid_before(datetime.fromtimestamp(0, UTC))
    signed = made.not_valid_after(datetime.fromtimestamp(ends, UTC)).sign(key, hashes.SHA256())
    return signed.public_bytes(Encoding.PEM).decode()


class _Answers(Agent):
    """An agent that says what the test says."""

    def __init__(self, machine: "MadeUp") -> None:
        super().__init__("/nowhere", False, None)
        self._machine = machine

    def ask_health(self, alive_within: float = 0.0) -> dict[str, Any]:
        if self._machine.uid != 0:
            raise NotPermitted("/run/license-agent/admin.sock may not be opened by uid 1000")
        return self._machine.says


class MadeUp(Machine):
    """The machine.

    Attributes:
        stats: what only root could make, by path.
        says: the agent's reply to `status`.
        units: what systemd says of each unit.
        ran: what programs answer, by the beginning of their command.
        rooms: what file systems have left, by path.
        links: symbolic links.
        forbidden: paths that this user may not read.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(None, NOW, root=root, uid=0)
        self.agent = _Answers(self)
        self.run = self._run
        self.stats = dict(STATS)
        self.says: dict[str, Any] = json.loads(json.dumps(STATUS))
        self.units = {name: unit(name) for name in (*UNITS, "pos.service")}
        self.units[INSTALLER]["ReadWritePaths"] = "-/var/lib/pos"
        self.rooms = {STATE: Room(10**10, 10**6, False), LOG: Room(10**10, 10**6, False)}
        self.links = {
            "/var/lib/prometheus/node-exporter/license-agent.prom": "../../license-agent/metrics.prom",
            "/var/lib/pos/current": "slots/a",
        }
        self.forbidden: set[str] = set()
        self.ran: dict[str, Ran] = {
            f"license-agent --config {ETC}/config.toml check-config": Ran(0, '{"ok": true, "file": "x", "problems": []}\n'),
            "license-agent-link --check": Ran(0),
            "timedatectl show": Ran(0, "Timezone=UTC\nLocalRTC=no\nNTP=yes\nNTPSynchronized=yes\n"),
            "license-agent-manage check-config": Ran(0, f"{ETC}/manage.toml: no problems found\n"),
            "dpkg --verify license-agent": Ran(0, "??5?????? c /etc/license-agent/config.toml\n"),
            "dpkg --verify license-agent-manage": Ran(0),
        }
        for path, text in FILES.items():
            self.put(path, text)
        self.put(f"{ETC}/manage-cert.pem", certificate(NOW + 400 * DAY))
        for name in UNITS:
            self.put(f"/usr/lib/systemd/system/{name}", (ROOT / "systemd" / name).read_text("utf-8"))
        self.at(LOG).mkdir(parents=True)
        Logged(1).write(self.at(LOG))

    def put(self, path: str, text: str) -> None:
        """Writes a file of the machine."""
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(text, "utf-8")

    def change(self, path: str, **changes: Any) -> None:
        """Changes owner, mode or kind of something."""
        self.stats[path] = replace(self.stats[path], **changes)

    def stat(self, path: Path | str, *, follow: bool = False) -> Stat | None:
        if str(path) in self.forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        if str(path).startswith(FROM_TABLE) or str(path) in self.stats:
            return self.stats.get(str(path))
        return super().stat(path, follow=follow)

    def names(self, directory: Path | str) -> list[str]:
        if str(directory) in self.forbidden:
            raise PermissionError(13, "Permission denied", str(directory))
        return super().names(directory)

    def bytes(self, path: Path | str, limit: int = 2**22) -> bytes:
        if str(path) in self.forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return super().bytes(path, limit)

    def room(self, path: Path | str) -> Room:
        return self.rooms[str(path)]

    def link_target(self, path: Path | str) -> str | None:
        return self.links.get(str(path))

    def _run(self, command: Sequence[str]) -> Ran:
        words = " ".join(command)
        # What a test has put there counts before what is there from the beginning.
        for beginning, ran in reversed(self.ran.items()):
            if words.startswith(beginning):
                return ran
        if words.startswith("systemctl show"):
            shown = [each for each in self.units.values() if each["Id"] in command]
            return Ran(0, "\n\n".join("\n".join(f"{k}={v}" for k, v in each.items()) for each in shown) + "\n")
        raise FileNotFoundError(command[0])
