"""Faults as rows: the check that is meant, what it says, and how the fault is put into a machine that is in order."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cli.backup.retention import name_of
from cli.doctor.machine import Ran, Room
from cli.doctor.verdict import State
from tests.support.madeup import (
    CORE,
    CORE_UID,
    DAY,
    ETC,
    INSTALLER,
    LOG,
    MANAGE,
    NOW,
    OWN,
    RUN,
    STATE,
    MadeUp,
    certificate,
    unit,
)

CONFIG_CHECK = f"license-agent --config {ETC}/config.toml check-config"
LINK = "license-agent-link.service"
FAIL, WARN, UNKNOWN = State.FAIL, State.WARN, State.UNKNOWN

Put = Callable[[MadeUp], None]


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        check: the check that is to name it.
        state: what it makes of the check.
        cause: a part of the sentence that names it.
        put: puts it into the machine.
        also: checks that rightly complain as well.
    """

    check: str
    state: State
    cause: str
    put: Put
    also: frozenset[str] = frozenset()


def dropin(name: str, *lines: str) -> Put:
    return lambda machine: machine.put(f"/etc/systemd/system/{name}.d/x.conf", "\n".join(["[Service]", *lines, ""]))


def says(**changes: Any) -> Put:
    return lambda machine: machine.says.update(changes)


def admins(**changes: Any) -> Put:
    """Certificates are required; what else is so."""
    return says(authentication={"mode": "required", "ca_ends": NOW + DAY, "ca_problem": "", **changes})


def server(**changes: Any) -> Put:
    return lambda machine: machine.says["server"].update(changes)


def updates(**changes: Any) -> Put:
    return lambda machine: machine.says["updates"].update(changes)


def with_configuration(machine: MadeUp) -> None:
    """The product's configuration is to be kept, and there is none."""
    machine.put(f"{ETC}/installer.toml", machine.text(f"{ETC}/installer.toml") + 'config = "/etc/pos"\n')


def rooted(expires: str) -> Put:
    return wrote(f"{ETC}/update-trust.json", json.dumps({"agent_id": "pos-001", "tuf_root": {"signed": {"expires": expires}}}))


def enabled_without_trust(machine: MadeUp) -> None:
    machine.put(f"{ETC}/config.toml", machine.text(f"{ETC}/config.toml") + "[updates]\nenabled = true\n")
    del machine.stats[f"{ETC}/update-trust.json"]


def units(name: str, **changes: str) -> Put:
    return lambda machine: machine.units.update({name: unit(name, **changes)})


def ran(command: str, *how: Any) -> Put:
    return lambda machine: machine.ran.update({command: Ran(*how)})


def changed(path: str, **changes: Any) -> Put:
    return lambda machine: machine.change(path, **changes)


def gone(path: str) -> Put:
    def remove(machine: MadeUp) -> None:
        machine.stats.pop(path, None)
        machine.at(path).unlink(missing_ok=True)

    return remove


def wrote(path: str, content: str) -> Put:
    return lambda machine: machine.put(path, content)


def cut(machine: MadeUp) -> None:
    log = machine.at(f"{LOG}/audit.log")
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) > 3
    log.write_bytes(b"".join([lines[0], *lines[2:]]))


def elsewhere(machine: MadeUp) -> None:
    machine.put(f"/etc/systemd/system/{LINK}.d/override.conf", "")
    machine.put(
        f"{ETC}/link.toml", '[upstream.server]\nurl = "https://other.example"\n[upstream.ota]\nurl = "https://other.example"\n'
    )


def verdict(verdict: str, text: str, action: str = "") -> Put:
    return says(health={"verdict": verdict, "findings": [{"code": "x", "verdict": verdict, "text": text, "action": action}]})


def backed_up(hours: int | None = None, more: str = "", timer: str = "active", service: str = "inactive") -> Put:
    """Timed backups are configured, and the newest is so old."""

    def put(machine: MadeUp) -> None:
        text = machine.text(f"{ETC}/config.toml")
        machine.put(f"{ETC}/config.toml", f'{text}[backup]\ndirectory = "/backups"\nrecipients = "age1"\n{more}\n')
        if hours is not None:
            machine.put(f"/backups/{name_of('pos-001', NOW - hours * 3600)}", "")
        if timer:
            machine.units["license-agent-backup.timer"] = unit("license-agent-backup.timer", ActiveState=timer)
        machine.units["license-agent-backup.service"] = unit("license-agent-backup.service", ActiveState=service)

    return put


FAULTS = [
    Fault(
        "config.agent",
        FAIL,
        "unknown section 'x'",
        ran(CONFIG_CHECK, 78, '{"ok": false, "file": "c", "problems": ["unknown section \'x\'"]}'),
    ),
    Fault(
        "config.agent",
        WARN,
        "'client_key' has no effect",
        ran(
            CONFIG_CHECK, 0, '{"ok": true, "file": "c", "problems": []}', "license-agent: warning: 'client_key' has no effect\n"
        ),
    ),
    Fault("config.agent", UNKNOWN, "gave no answer: boom", ran(CONFIG_CHECK, 1, "", "boom\n")),
    Fault(
        "config.link",
        FAIL,
        "link.toml: no [core]",
        ran("license-agent-link --check", 78, "", "<3>license-agent-link: link.toml: no [core]\n"),
    ),
    Fault("agent.verdict", FAIL, "grace has ended", verdict("not_working", "grace has ended", "Act.")),
    Fault("agent.verdict", WARN, "the log is full", verdict("needs_attention", "the log is full")),
    Fault("agent.version", WARN, "running agent is version 0.0.9", says(agent_version="0.0.9")),
    Fault("agent.confinement", FAIL, "could start programs", says(confinement={"exec_forbidden": False, "landlock_abi": 2})),
    Fault("agent.confinement", WARN, "no Landlock", says(confinement={"exec_forbidden": True, "landlock_abi": None})),
    Fault("agent.administrators", FAIL, "cannot be used: it has no CA", admins(ca_problem="it has no CA")),
    Fault("agent.administrators", FAIL, "cannot be used: there is none", admins(ca_ends=None)),
    Fault("agent.administrators", FAIL, "the admin CA has ended", admins(ca_ends=NOW - 1)),
    Fault("agent.certificate", FAIL, "ended 2 days ago", server(certificate_ends=NOW - 2 * DAY)),
    Fault("agent.certificate", WARN, "ends in 3 days", server(certificate_ends=NOW + 3 * DAY + 5)),
    Fault("server.contact", FAIL, "the last 5 contacts failed: no route", server(failures=5, problem="no route")),
    Fault("server.contact", WARN, "the last contact failed", server(failures=1, problem="no route")),
    Fault("server.contact", WARN, "the last contact was 4 days ago", server(last_contact=NOW - 4 * DAY - 1)),
    Fault("server.contact", WARN, "switched contacts off", server(held=True)),
    Fault("server.contact", UNKNOWN, "there was no contact yet", server(last_contact=None)),
    Fault(
        "units.active",
        FAIL,
        "license-agent-pos.socket is inactive",
        units("license-agent-pos.socket", ActiveState="inactive", SubState="dead"),
    ),
    Fault(
        "units.active",
        FAIL,
        "license-agent-link.service has failed (exit-code)",
        units("license-agent-link.service", ActiveState="failed", Result="exit-code"),
    ),
    Fault(
        "units.active",
        FAIL,
        "license-agent-manage.service has failed (exit-code)",
        units(MANAGE, ActiveState="failed", Result="exit-code"),
    ),
    Fault("units.active", FAIL, "license-agent.service is disabled", units(CORE, UnitFileState="disabled")),
    Fault("units.active", FAIL, "license-agent.service is masked", units(CORE, LoadState="masked")),
    Fault("units.active", WARN, "systemd has not read them", units(CORE, NeedDaemonReload="yes")),
    Fault("units.active", WARN, "has restarted license-agent.service 7 times", units(CORE, NRestarts="7")),
    Fault(
        "units.active",
        UNKNOWN,
        "systemd does not answer",
        ran("systemctl show --no-pager --property=Id", 1, "", "System has not been booted with systemd"),
        frozenset({"manage.service", "updates.products"}),
    ),
    Fault(
        "units.sandbox",
        FAIL,
        "NoNewPrivileges= of license-agent.service is 'no' instead of 'yes' (/etc/systemd/system/license-agent.service.d/",
        dropin(CORE, "NoNewPrivileges=no"),
    ),
    Fault("units.sandbox", FAIL, "PrivateNetwork= of license-agent.service", dropin(CORE, "PrivateNetwork=false")),
    Fault(
        "units.sandbox",
        FAIL,
        "AppArmorProfile= of license-agent.service is unset instead of 'license-agent'",
        dropin(CORE, "AppArmorProfile="),
    ),
    Fault(
        "units.sandbox",
        FAIL,
        "ProtectSystem= of license-agent-link.service is 'full' instead of 'strict'",
        dropin(LINK, "ProtectSystem=full"),
    ),
    Fault(
        "units.sandbox",
        FAIL,
        "CapabilityBoundingSet= of license-agent.service adds CAP_SYS_ADMIN",
        dropin(CORE, "CapabilityBoundingSet=CAP_SYS_ADMIN"),
    ),
    Fault("units.sandbox", FAIL, "ReadWritePaths= of license-agent.service adds /etc", dropin(CORE, "ReadWritePaths=/etc")),
    Fault(
        "units.sandbox",
        FAIL,
        "InaccessiblePaths= of license-agent.service no longer forbids",
        dropin(CORE, "InaccessiblePaths=", "InaccessiblePaths=/root"),
    ),
    Fault(
        "units.sandbox",
        FAIL,
        "SystemCallFilter= of license-agent.service allows ptrace",
        dropin(CORE, "SystemCallFilter=ptrace"),
    ),
    Fault(
        "units.sandbox",
        FAIL,
        "SystemCallFilter= of license-agent.service lifts the restriction",
        dropin(CORE, "SystemCallFilter="),
    ),
    Fault("units.sandbox", FAIL, "IPAddressAllow= of license-agent-link.service adds any", dropin(LINK, "IPAddressAllow=any")),
    Fault(
        "units.sandbox",
        FAIL,
        "MemoryDenyWriteExecute= of license-agent-link.service",
        wrote("/run/systemd/system/license-agent-.service.d/a.conf", "[Service]\nMemoryDenyWriteExecute=no\n"),
    ),
    Fault(
        "units.sandbox",
        FAIL,
        "LockPersonality= of license-agent-installer.service",
        wrote("/etc/systemd/system/service.d/a.conf", "[Service]\nLockPersonality=no\n"),
    ),
    Fault(
        "units.sandbox",
        FAIL,
        "IPAddressAllow= of license-agent-manage.service adds any",
        dropin(MANAGE, "IPAddressAllow=any"),
    ),
    Fault("units.sandbox", WARN, "Environment= of license-agent.service", dropin(CORE, "Environment=A=b")),
    Fault(
        "units.sandbox",
        FAIL,
        "LockPersonality= of license-agent.service is unset",
        wrote(f"/etc/systemd/system/{CORE}", "[Service]\nExecStart=/usr/bin/license-agent run\n"),
        frozenset({"machine.memory"}),
    ),
    Fault(
        "units.apparmor",
        FAIL,
        "license-agent-link is in complain mode",
        wrote(
            "/sys/kernel/security/apparmor/profiles",
            "license-agent (enforce)\nlicense-agent-link (complain)\nlicense-agent-installer (enforce)\n"
            "license-agent-manage (enforce)\nlicense-agent-apply (enforce)\n"
            "license-agent-upgrade (enforce)\nlicense-agent-updater (enforce)\n",
        ),
    ),
    Fault(
        "units.apparmor",
        FAIL,
        "license-agent-installer is not loaded",
        wrote(
            "/sys/kernel/security/apparmor/profiles",
            "license-agent (enforce)\nlicense-agent-link (enforce)\nlicense-agent-manage (enforce)\n"
            "license-agent-apply (enforce)\nlicense-agent-upgrade (enforce)\nlicense-agent-updater (enforce)\n",
        ),
    ),
    Fault(
        "units.apparmor",
        FAIL,
        "profile license-agent-manage is not loaded",
        wrote(
            "/sys/kernel/security/apparmor/profiles",
            "license-agent (enforce)\nlicense-agent-link (enforce)\nlicense-agent-installer (enforce)\n"
            "license-agent-apply (enforce)\nlicense-agent-upgrade (enforce)\nlicense-agent-updater (enforce)\n",
        ),
    ),
    Fault(
        "units.apparmor",
        FAIL,
        "the process of license-agent-manage.service runs as 'license-agent (enforce)'",
        wrote("/proc/4712/attr/current", "license-agent (enforce)\n"),
    ),
    Fault("units.apparmor", FAIL, "AppArmor is switched off", wrote("/sys/module/apparmor/parameters/enabled", "N\n")),
    Fault("units.apparmor", FAIL, "AppArmor is not in this kernel", gone("/sys/module/apparmor/parameters/enabled")),
    Fault("units.apparmor", FAIL, "the agent's process runs as 'unconfined'", wrote("/proc/4711/attr/current", "unconfined\n")),
    Fault(
        "units.reach",
        FAIL,
        "does not name 192.0.2.10",
        wrote("/etc/systemd/system/license-agent-link.service.d/override.conf", "[Service]\nIPAddressAllow=192.0.2.99\n"),
    ),
    Fault("units.reach", FAIL, "this machine only, not to other.example", elsewhere),
    Fault("files.modes", FAIL, f"{ETC}/config.toml has mode 0644", changed(f"{ETC}/config.toml", mode=0o644)),
    Fault(
        "files.modes", FAIL, f"{ETC}/link.toml belongs to license-agent-link, not to root", changed(f"{ETC}/link.toml", uid=989)
    ),
    Fault("files.modes", FAIL, f"{STATE} belongs to root, not to license-agent", changed(STATE, uid=0)),
    Fault("files.modes", FAIL, f"{STATE}/secrets.store has mode 0640", changed(f"{STATE}/secrets.store", mode=0o640)),
    Fault("files.modes", FAIL, f"{STATE} has mode 0700, so that those who need it cannot use it", changed(STATE, mode=0o700)),
    Fault("files.modes", FAIL, "/var/lib/license-agent-key is missing", gone("/var/lib/license-agent-key")),
    Fault("files.modes", FAIL, f"{ETC}/config.toml is a symbolic link", changed(f"{ETC}/config.toml", kind="link")),
    Fault("files.sockets", FAIL, f"{RUN}/pos.sock is missing", gone(f"{RUN}/pos.sock")),
    Fault("files.sockets", FAIL, f"{RUN}/admin.sock has mode 0666", changed(f"{RUN}/admin.sock", mode=0o666)),
    Fault("files.sockets", FAIL, f"{RUN}/admin.sock belongs to the group root", changed(f"{RUN}/admin.sock", gid=0)),
    Fault("files.sockets", FAIL, f"{RUN}/link.sock is no socket", changed(f"{RUN}/link.sock", kind="file")),
    Fault(
        "disk.room",
        FAIL,
        f"no room is left for {LOG}: 1 MiB",
        lambda machine: machine.rooms.update({LOG: Room(2**20, 10**6, False)}),
    ),
    Fault(
        "disk.room",
        WARN,
        f"little room is left for {STATE}: 100 MiB",
        lambda machine: machine.rooms.update({STATE: Room(100 * 2**20, None, False)}),
    ),
    Fault(
        "disk.room",
        FAIL,
        f"no room is left for {STATE}: 0 inodes",
        lambda machine: machine.rooms.update({STATE: Room(10**10, 0, False)}),
    ),
    Fault(
        "disk.room",
        FAIL,
        f"the file system of {LOG} is mounted read-only",
        lambda machine: machine.rooms.update({LOG: Room(10**10, 10**6, True)}),
    ),
    Fault("audit.log", FAIL, "the audit log was tampered with", cut),
    Fault("audit.log", FAIL, "the agent cannot write its audit log", says(audit={"seq": 100, "failing": True})),
    Fault(
        "audit.rotation",
        FAIL,
        "(/etc/logrotate.d/x: /var/log/license-agent/*.log)",
        wrote("/etc/logrotate.d/x", "/var/log/x.log /var/log/license-agent/*.log {\n}\n"),
    ),
    Fault("audit.rotation", FAIL, "audit.log.1.gz lies beside it", wrote(f"{LOG}/audit.log.1.gz", "")),
    Fault("metrics.collected", FAIL, "was written 10 min ago", changed(f"{STATE}/metrics.prom", mtime=NOW - 600)),
    Fault("metrics.collected", FAIL, "license-agent.prom is missing", lambda machine: machine.links.clear()),
    Fault(
        "metrics.collected",
        FAIL,
        "/srv/prom/license-agent.prom is missing",
        wrote("/etc/default/prometheus-node-exporter", 'ARGS="--collector.textfile.directory=/srv/prom"\n'),
    ),
    Fault(
        "tpm.device",
        FAIL,
        "the user license-agent is not in the group tss",
        wrote("/etc/group", "root:x:0:\ntss:x:110:\nlicense-agent-admin:x:995:\nlicense-agent-updater:x:987:\n"),
    ),
    Fault("tpm.device", FAIL, "belongs to group root with mode 0600", changed("/dev/tpmrm0", gid=0, mode=0o600)),
    Fault("tpm.device", FAIL, "the kernel has a TPM (tpm0), but /dev/tpmrm0 is not there", gone("/dev/tpmrm0")),
    Fault("tpm.device", FAIL, "every user may use /dev/tpmrm0", changed("/dev/tpmrm0", mode=0o666)),
    Fault(
        "tpm.device",
        FAIL,
        "the TPM does not answer the agent: locked out",
        says(backend={"available": False, "detail": "locked out"}),
    ),
    Fault("machine.clock", FAIL, "not synchronized", ran("timedatectl show", 0, "NTP=no\nNTPSynchronized=no\n")),
    Fault("machine.clock", WARN, "no battery-backed clock", gone("/sys/class/rtc/rtc0/since_epoch")),
    Fault(
        "machine.clock",
        WARN,
        "differs from the system's by 120 minutes",
        wrote("/sys/class/rtc/rtc0/since_epoch", f"{NOW - 7200}\n"),
    ),
    Fault("machine.memory", WARN, "crash kernel", wrote("/sys/kernel/kexec_crash_loaded", "1\n")),
    Fault("machine.memory", WARN, "fs.suid_dumpable is 2", wrote("/proc/sys/fs/suid_dumpable", "2\n")),
    Fault(
        "package.files",
        FAIL,
        "/usr/bin/license-agent was changed",
        ran("dpkg --verify", 0, "??5??????   /usr/bin/license-agent\n"),
    ),
    Fault(
        "package.files",
        FAIL,
        "/usr/lib/license-agent/x.py is missing",
        ran("dpkg --verify", 0, "missing     /usr/lib/license-agent/x.py\n"),
    ),
    Fault(
        "package.files",
        WARN,
        "/etc/apparmor.d/license-agent is not as the package has it",
        ran("dpkg --verify", 0, "??5?????? c /etc/apparmor.d/license-agent\n"),
    ),
    Fault(
        "package.files",
        UNKNOWN,
        "is not installed",
        ran("dpkg --verify", 1, "", "dpkg: package 'license-agent' is not installed\n"),
    ),
    Fault(
        "package.files",
        FAIL,
        "/usr/bin/license-agent-manage was changed",
        ran("dpkg --verify license-agent-manage", 0, "??5??????   /usr/bin/license-agent-manage\n"),
    ),
    Fault(
        "package.files",
        UNKNOWN,
        "the package license-agent-manage is not installed",
        ran("dpkg --verify license-agent-manage", 1, "", "dpkg: package 'license-agent-manage' is not installed\n"),
    ),
    Fault("backup.timed", FAIL, "there is no backup in /backups", backed_up()),
    Fault("backup.timed", FAIL, "the newest backup in /backups is 49 hours old", backed_up(49)),
    Fault("backup.timed", FAIL, "the newest backup in /backups is 3 hours old", backed_up(3, "overdue_hours = 2")),
    Fault("backup.timed", WARN, "dated in the future", backed_up(-2)),
    Fault("backup.timed", FAIL, "license-agent-backup.timer is inactive", backed_up(1, timer="inactive")),
    Fault("backup.timed", FAIL, "the last backup failed", backed_up(1, service="failed")),
    Fault("backup.timed", UNKNOWN, "systemd says nothing of license-agent-backup.timer", backed_up(1, timer="")),
    Fault(
        "manage.service",
        FAIL,
        "'port' in [listen] must be",
        ran("license-agent-manage check-config", 78, "", "license-agent-manage: 'port' in [listen] must be more\n"),
    ),
    Fault("manage.service", FAIL, "gives no reason", ran("license-agent-manage check-config", 1)),
    Fault("manage.service", FAIL, "license-agent-manage.service is inactive", units(MANAGE, ActiveState="inactive")),
    Fault("manage.service", WARN, "does not start at the next boot", units(MANAGE, UnitFileState="disabled")),
    Fault(
        "manage.service",
        FAIL,
        "does not let license-agent-manage use its admin socket",
        wrote(f"{ETC}/config.toml", "[management]\nallowed_uids = [0]\n"),
    ),
    Fault(
        "manage.service",
        FAIL,
        f"license-agent-manage cannot read {ETC}/manage-key.pem",
        changed(f"{ETC}/manage-key.pem", mode=0o600),
    ),
    Fault("manage.service", FAIL, "ended 2 days ago", wrote(f"{ETC}/manage-cert.pem", certificate(NOW - 2 * DAY))),
    Fault("manage.service", WARN, "ends in 29 days", wrote(f"{ETC}/manage-cert.pem", certificate(NOW + 30 * DAY - 1))),
    Fault("files.modes", FAIL, f"{ETC}/update-trust.json has mode 0664", changed(f"{ETC}/update-trust.json", mode=0o664)),
    Fault(
        "files.modes",
        FAIL,
        f"{ETC}/update-trust.json belongs to license-agent",
        changed(f"{ETC}/update-trust.json", uid=CORE_UID),
    ),
    Fault("files.modes", FAIL, f"{ETC}/update-trust.json has mode 0600", changed(f"{ETC}/update-trust.json", mode=0o600)),
    Fault("files.modes", FAIL, f"{ETC}/installer.toml has mode 0646", changed(f"{ETC}/installer.toml", mode=0o646)),
    Fault("files.modes", FAIL, f"{ETC}/installer.toml has mode 0240", changed(f"{ETC}/installer.toml", mode=0o240)),
    Fault("updates.allowed", FAIL, "[updates] enabled is true, and there is no update-trust.json", enabled_without_trust),
    Fault("updates.allowed", WARN, "the root metadata in update-trust.json ends on 2027-02-14", rooted("2027-02-14T08:00:00Z")),
    Fault(
        "updates.allowed", WARN, "the root metadata in update-trust.json ended on 2027-01-14", rooted("2027-01-14T08:00:00Z")
    ),
    Fault("updates.allowed", FAIL, "update-trust.json has no root metadata with an end", rooted("soon")),
    Fault(
        "updates.state",
        WARN,
        "the targets metadata of the update repository ends on 2027-02-14",
        updates(signed={"role": "targets", "until": NOW + 30 * 86_400}),
    ),
    Fault(
        "updates.state",
        WARN,
        "the releases metadata of the update repository ended on 2027-01-15",
        updates(signed={"role": "releases", "until": NOW}),
    ),
    Fault("updates.allowed", FAIL, "update-trust.json is no trust file", wrote(f"{ETC}/update-trust.json", "{")),
    Fault(
        "updates.allowed",
        FAIL,
        "is for the agent pos-002, and this is pos-001",
        wrote(f"{ETC}/update-trust.json", '{"agent_id": "pos-002"}'),
    ),
    Fault(
        "updates.allowed",
        FAIL,
        "installer.toml is not TOML",
        wrote(f"{ETC}/installer.toml", "[product"),
        also=frozenset({"updates.products"}),
    ),
    Fault(
        "updates.allowed",
        WARN,
        "no update can be downloaded",
        wrote(f"{ETC}/link.toml", '[upstream.server]\nurl = "https://license.example:8443"\n'),
    ),
    Fault(
        "updates.state",
        FAIL,
        "updates are locked after 3 failed attempts: it does not work",
        updates(state="locked", attempts=3, failure={"code": "unproved", "text": "it does not work"}),
    ),
    Fault("updates.state", WARN, "1 attempt to install an update failed in a row", updates(attempts=1)),
    Fault("updates.state", WARN, "cannot go on: the updater does not answer", updates(problem="the updater does not answer")),
    Fault("updates.state", WARN, "no update begins: alice has paused", updates(paused="alice has paused updates")),
    Fault("updates.state", WARN, "has not rehearsed an update for a quarter", updates(rehearsal_overdue=True)),
    Fault("updates.state", UNKNOWN, "does not say", lambda machine: machine.says.pop("updates")),
    Fault(
        "updates.products",
        FAIL,
        f"{OWN} is not a directory of root's alone",
        changed(OWN, mode=0o755),
    ),
    Fault("updates.products", FAIL, f"{OWN}/state.json is missing, and was there", gone(f"{OWN}/state.json")),
    Fault("updates.products", FAIL, f"{OWN}/state.json is damaged", wrote(f"{OWN}/state.json", "{")),
    Fault("updates.products", UNKNOWN, f"may not look into {OWN}", lambda machine: machine.forbidden.add(f"{OWN}/state.json")),
    Fault("updates.products", FAIL, "/var/lib/pos is not a directory", gone("/var/lib/pos")),
    Fault("updates.products", FAIL, "others than root may change /var/lib/pos", changed("/var/lib/pos", uid=1500)),
    Fault("updates.products", FAIL, "others than root may change /var/lib", changed("/var/lib", mode=0o777)),
    Fault(
        "updates.products",
        FAIL,
        "/var/lib/pos/current does not lead to slots/a or slots/b",
        lambda machine: machine.links.update({"/var/lib/pos/current": "/srv/pos"}),
    ),
    Fault(
        "updates.products",
        FAIL,
        "license-agent-installer.service may not write to /var/lib/pos",
        units(INSTALLER, ReadWritePaths="-/var/lib/kds"),
    ),
    Fault("updates.products", FAIL, "systemd does not know pos.service", units("pos.service", LoadState="not-found")),
    Fault("updates.products", FAIL, "/etc/pos is not a directory", with_configuration),
]
