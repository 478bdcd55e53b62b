"""Checks of what systemd and AppArmor do for the agent: units, sandbox, profiles, and where the link may connect."""

import contextlib
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

from cli.doctor.layout import Destination
from cli.doctor.machine import CannotTell, Machine
from cli.doctor.verdict import Check, Judgment, fail, note, unknown, warn

from .unitfiles import (
    SHIPPED_IN,
    UNIT_DIRECTORIES,
    Assignment,
    Looser,
    assignments,
    dropin_directories,
    looser,
    values,
)

CORE, LINK, INSTALLER = "license-agent.service", "license-agent-link.service", "license-agent-installer.service"
MANAGE, UPDATER = "license-agent-manage.service", "license-agent-updater.service"
APPLY, JOBS = "license-agent-apply.service", "license-agent-apply.path"
UPGRADE, UPGRADES = "license-agent-upgrade.service", "license-agent-upgrade.path"
SERVICES = (CORE, LINK, INSTALLER, APPLY, UPGRADE, UPDATER)
SOCKETS = (
    "license-agent-pos.socket",
    "license-agent-admin.socket",
    "license-agent-link.socket",
    "license-agent-installer.socket",
    "license-agent-updater.socket",
)
ALWAYS = (CORE, *SOCKETS, JOBS, UPGRADES)
"""Units that are active and enabled on every machine; the other services are started by their sockets, or by a job."""
PROFILES = (
    "license-agent",
    "license-agent-link",
    "license-agent-installer",
    "license-agent-apply",
    "license-agent-upgrade",
    "license-agent-updater",
)
"""AppArmor's, each with the name of its unit."""
_PROPERTIES = "Id,LoadState,ActiveState,SubState,UnitFileState,Result,NeedDaemonReload,NRestarts"
_MANY_RESTARTS = 3


def has_manage(machine: Machine) -> bool:
    """Whether the package of the REST interface is installed."""
    return any(machine.stat(f"{place}/{MANAGE}") is not None for place in SHIPPED_IN)


def services(machine: Machine) -> tuple[str, ...]:
    """The services that are installed: those of the agent's package, and the REST interface with its package."""
    return (*SERVICES, MANAGE) if has_manage(machine) else SERVICES


def package_of(unit: str) -> str:
    """The package that a unit is from."""
    return "license-agent-manage" if unit == MANAGE else "license-agent"


def asked(machine: Machine, properties: str, *names: str) -> list[dict[str, str]]:
    """What systemd says of units; raises CannotTell if it does not answer."""
    done = machine.program("systemctl", "show", "--no-pager", f"--property={properties}", *names)
    if done.status != 0 or "Id=" not in done.stdout:
        raise CannotTell("systemd does not answer; was this machine booted with it?")
    return [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in done.stdout.split("\n\n")
        if block.strip()
    ]


def _units(machine: Machine) -> dict[str, dict[str, str]]:
    """By name; a unit of which systemd says nothing has no properties."""
    names = (*services(machine), *SOCKETS, JOBS, UPGRADES)
    return {name: {} for name in names} | {unit["Id"]: unit for unit in asked(machine, _PROPERTIES, *names)}


def _judge_units(units: dict[str, dict[str, str]]) -> Judgment:
    judged: Judgment = [unknown(f"systemd says nothing of {name}") for name, unit in units.items() if not unit]
    for unit in filter(None, units.values()):
        name, load, active = unit["Id"], unit["LoadState"], unit["ActiveState"]
        if load == "masked":
            judged.append(fail(f"{name} is masked: systemd never starts it", f"systemctl unmask {name}"))
        elif load != "loaded":
            judged.append(fail(f"systemd cannot load {name} ({load})", f"apt install --reinstall {package_of(name)}"))
        elif active == "failed":
            judged.append(
                fail(
                    f"{name} has failed ({unit.get('Result', '')})",
                    f"journalctl -u {name} -n 20; then: systemctl restart {name}",
                )
            )
        elif name in ALWAYS and active not in ("active", "reloading"):
            judged.append(fail(f"{name} is {active} ({unit.get('SubState', '')})", f"systemctl start {name}"))
        if name in ALWAYS and load == "loaded" and unit.get("UnitFileState") == "disabled":
            judged.append(fail(f"{name} is disabled: it does not start at the next boot", f"systemctl enable {name}"))
        if unit.get("NeedDaemonReload") == "yes":
            judged.append(
                warn(
                    f"files of {name} were changed and systemd has not read them",
                    f"systemctl daemon-reload && systemctl restart {name}",
                )
            )
        if unit.get("NRestarts", "0").isdigit() and int(unit.get("NRestarts", "0")) >= _MANY_RESTARTS:
            judged.append(
                warn(
                    f"systemd has restarted {name} {unit['NRestarts']} times since it was started",
                    f"journalctl -u {name} -n 50",
                )
            )
    return judged


@dataclass(frozen=True, slots=True)
class UnitFiles:
    """The files of a unit.

    Attributes:
        name: of the unit.
        shipped: what the package's file assigns.
        added: what replaces or extends it assigns, in systemd's order.
        replaced: the file that takes the place of the package's; empty if none does.
    """

    name: str
    shipped: list[Assignment]
    added: list[Assignment]
    replaced: str = ""


def unit_files(machine: Machine, name: str) -> UnitFiles:
    """Reads a unit's files as systemd does; raises CannotTell if the package's is missing."""
    shipped = next((f"{place}/{name}" for place in SHIPPED_IN if machine.stat(f"{place}/{name}") is not None), None)
    if shipped is None:
        raise CannotTell(f"the package's {name} is not there", f"apt install --reinstall {package_of(name)}")
    before = assignments(machine.text(shipped), shipped)
    stronger = UNIT_DIRECTORIES[: UNIT_DIRECTORIES.index("/usr/lib/systemd/system")]
    other = next((f"{place}/{name}" for place in stronger if machine.stat(f"{place}/{name}") is not None), "")
    added: list[Assignment] = []
    if other and machine.stat(other, follow=True) is not None and machine.link_target(other) != "/dev/null":
        replacing = assignments(machine.text(other), other)
        # Its keys are all that holds; an empty assignment first takes the package's away.
        keys = dict.fromkeys(each.key for each in (*before, *replacing))
        added = [*(Assignment(key, "", other) for key in keys), *replacing]
    for file in _dropins(machine, name):
        added += assignments(machine.text(file), file)
    return UnitFiles(name, before, added, other)


def _dropins(machine: Machine, name: str) -> list[str]:
    """The drop-ins of a unit: of two with the same name the stronger directory's counts, and their names give the order."""
    found: dict[str, str] = {}
    for directory in dropin_directories(name):
        for place in UNIT_DIRECTORIES:
            for file in machine.names(f"{place}/{directory}"):
                if file.endswith(".conf"):
                    found.setdefault(file, f"{place}/{directory}/{file}")
    return [found[file] for file in sorted(found) if machine.link_target(found[file]) != "/dev/null"]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The units' files, and what an administrator may well add to them."""

    units: list[UnitFiles]
    paths: frozenset[str]


def _sandbox(machine: Machine) -> Sandbox:
    layout = machine.layout
    paths = frozenset(str(path) for path in (layout.state, layout.log, layout.key, layout.software_store.parent))
    return Sandbox([unit_files(machine, name) for name in services(machine)], paths)


def _judge_sandbox(found: Sandbox) -> Judgment:
    judged: Judgment = []
    for unit in found.units:
        if unit.replaced:
            judged.append(
                warn(
                    f"{unit.replaced} replaces the package's {unit.name}", f"use a drop-in instead: systemctl edit {unit.name}"
                )
            )
        for each in looser(unit.shipped, unit.added, found.paths):
            if not (each.key == "IPAddressAllow" and unit.name == LINK and _is_narrow(each)):
                make = fail if each.certain else warn
                judged.append(
                    make(
                        f"{each.key}= of {unit.name} {each.text} ({each.file})",
                        f"remove the line from {each.file}, then: systemctl daemon-reload && systemctl restart {unit.name}",
                    )
                )
    return judged


def _is_narrow(each: Looser) -> bool:
    """Whether an address that was added to the link's is what an administrator is meant to add: hosts, or a small network."""
    try:
        network = ipaddress.ip_network(each.text.removeprefix("adds "), strict=False)
    except ValueError:
        return False
    return network.num_addresses <= 2**16 if network.version == 4 else network.prefixlen >= 48


@dataclass(frozen=True, slots=True)
class Profiles:
    """What the kernel enforces.

    Attributes:
        enabled: whether AppArmor is on; None if this kernel has none.
        modes: of the profiles that are loaded, by name.
        wanted: the profiles that should be.
        processes: the profile of each service's process, by unit; without those that do not run.
    """

    enabled: bool | None
    modes: dict[str, str]
    wanted: tuple[str, ...] = PROFILES
    processes: dict[str, str] = field(default_factory=dict)


def _profiles(machine: Machine) -> Profiles:
    switch = machine.text_or("/sys/module/apparmor/parameters/enabled").strip()
    if switch != "Y":
        return Profiles(False if switch else None, {})
    try:
        text = machine.text("/sys/kernel/security/apparmor/profiles")
    except PermissionError:
        raise CannotTell("only root may read which profiles are loaded", machine.ask_for_root()) from None
    except FileNotFoundError:
        raise CannotTell("securityfs is not mounted", "mount -t securityfs securityfs /sys/kernel/security") from None
    modes = {found[1]: found[2] for found in re.finditer(r"^(\S+) \((\w+)\)$", text, re.MULTILINE)}
    names = services(machine)
    return Profiles(True, modes, tuple(_profile(name) for name in names), _profiles_of_processes(machine, names))


def _profile(unit: str) -> str:
    return unit.removesuffix(".service")


def _profiles_of_processes(machine: Machine, names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    try:
        for unit in asked(machine, "Id,MainPID", *names):
            pid = int(unit.get("MainPID", "0"))
            if pid:
                with contextlib.suppress(OSError):  # it has ended since
                    found[unit["Id"]] = machine.text(f"/proc/{pid}/attr/current").strip("\0\n")
    except (CannotTell, ValueError):
        return {}  # units.active says why nothing is known of the processes
    return found


def _judge_profiles(found: Profiles) -> Judgment:
    if found.enabled is not True:
        what = "is not in this kernel" if found.enabled is None else "is switched off"
        return [
            fail(
                f"AppArmor {what}: no profile of the agent is enforced",
                "add apparmor=1 security=apparmor to the kernel's command line",
            )
        ]
    judged: Judgment = []
    for name in found.wanted:
        mode = found.modes.get(name)
        if mode is None:
            judged.append(
                fail(
                    f"the AppArmor profile {name} is not loaded",
                    f"apparmor_parser -r /etc/apparmor.d/{name} && systemctl restart {_restarted(name)}",
                )
            )
        elif mode != "enforce":
            judged.append(
                fail(f"the AppArmor profile {name} is in {mode} mode: it forbids nothing", f"aa-enforce /etc/apparmor.d/{name}")
            )
    for unit, profile in found.processes.items():
        if not profile.startswith(f"{_profile(unit)} ("):
            whose = "the agent's process" if unit == CORE else f"the process of {unit}"
            judged.append(
                fail(f"{whose} runs as '{profile}', not under its AppArmor profile", f"systemctl restart {_profile(unit)}")
            )
    return judged


def _restarted(profile: str) -> str:
    """What to restart for a profile: the agent's other services start again when the agent next needs them."""
    return profile if profile == _profile(MANAGE) else _profile(CORE)


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the link may and must connect.

    Attributes:
        allowed: IPAddressAllow= of the link's unit.
        destinations: what the configuration names.
        hosts: addresses of names by /etc/hosts.
        works: the agent's contacts succeed.
    """

    allowed: list[str]
    destinations: tuple[Destination, ...]
    hosts: dict[str, list[str]]
    works: bool


def _reach(machine: Machine) -> Reach:
    files = unit_files(machine, LINK)
    allowed = [word for each in values([*files.shipped, *files.added], "IPAddressAllow") for word in each.value.split()]
    try:
        server = machine.status.get("server") or {}
    except CannotTell:
        server = {}
    works = bool(server.get("last_contact")) and server.get("failures") == 0
    return Reach(allowed, machine.destinations(), machine.hosts(), works)


_NAMED = {
    "any": ("0.0.0.0/0", "::/0"),
    "localhost": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/64"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
}


def _is_allowed(address: str, allowed: list[str]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    for word in allowed:
        for text in _NAMED.get(word, (word,)):
            try:
                if found in ipaddress.ip_network(text, strict=False):
                    return True
            except ValueError:
                continue
    return False


def _judge_reach(found: Reach) -> Judgment:
    if not found.destinations:
        return [unknown("neither link.toml nor the agent names a license server", "license-agent-cli provision")]
    only_here = all(word == "localhost" for word in found.allowed)
    judged: Judgment = []
    for to in found.destinations:
        edit = "systemctl edit license-agent-link.service   # [Service] IPAddressAllow="
        addresses = [to.host] if _is_address(to.host) else found.hosts.get(to.host.lower(), [])
        if addresses:
            closed = [address for address in addresses if not _is_allowed(address, found.allowed)]
            judged += [
                fail(
                    f"systemd lets the link connect nowhere near {to.host}: IPAddressAllow= does not name {address}",
                    edit + address,
                )
                for address in closed
            ]
        elif only_here and to.host != "localhost":
            judged.append(
                fail(f"systemd lets the link connect to this machine only, not to {to.host}", f"{edit}ADDRESS of {to.host}")
            )
        elif not found.works and to.host != "localhost":
            judged.append(
                unknown(
                    f"whether IPAddressAllow= ({' '.join(found.allowed)}) names {to.host} only a resolver knows",
                    f"compare with: getent ahosts {to.host}",
                )
            )
    return judged or [note(", ".join(f"{to.host}:{to.port}" for to in found.destinations))]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


CHECKS: tuple[Check[Any], ...] = (
    Check("units.active", "The units are active and enabled", "`systemctl show` of the agent's units", _units, _judge_units),
    Check(
        "units.sandbox",
        "No drop-in makes the sandbox looser",
        "unit files and drop-ins below `/etc`, `/run`, `/usr/lib/systemd/system`",
        _sandbox,
        _judge_sandbox,
    ),
    Check(
        "units.apparmor",
        "AppArmor enforces the profiles",
        "`/sys/kernel/security/apparmor/profiles`, `/proc/PID/attr/current`",
        _profiles,
        _judge_profiles,
    ),
    Check(
        "units.reach",
        "systemd lets the link connect to the license server",
        "`IPAddressAllow=` of license-agent-link.service, link.toml, `/etc/hosts`",
        _reach,
        _judge_reach,
    ),
)
