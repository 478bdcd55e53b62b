"""Checks of the machine: TPM, clock, memory that could reach a disk, and whether the package is as it was installed."""

import re
from dataclasses import dataclass
from typing import Any

from cli.doctor.machine import CannotTell, Machine, Stat
from cli.doctor.verdict import Check, Judgment, fail, note, unknown, warn
from common.text import quantity

from .unit_checks import CORE, LINK, package_of, services, unit_files
from .unitfiles import values

RTC_OFF_S = 3600
"""A battery-backed clock that differs by more would start the machine at a wrong time."""


@dataclass(frozen=True, slots=True)
class TpmDevice:
    """The device file of the TPM.

    Attributes:
        used: whether the configuration uses a TPM at all.
        path: of the device; empty if it is reached otherwise.
        found: what is there; None if nothing is.
        group: name of its group.
        member: whether the agent's user belongs to that group.
        kernel: the TPMs that the kernel has found.
        answers: what the agent says of it; None if it says nothing.
        detail: the agent's words.
    """

    used: bool
    path: str = ""
    found: Stat | None = None
    group: str = ""
    member: bool = False
    kernel: tuple[str, ...] = ()
    answers: bool | None = None
    detail: str = ""


def _tpm(machine: Machine) -> TpmDevice:
    layout = machine.layout
    try:
        backend = machine.status.get("backend") or {}
    except CannotTell:
        backend = {}
    answers, detail = backend.get("available"), str(backend.get("detail", ""))
    if not layout.tpm:
        return TpmDevice(False, answers=answers, detail=detail)
    kind, _, path = layout.tcti.partition(":")
    if kind != "device":
        return TpmDevice(True, answers=answers, detail=detail)
    path = path or "/dev/tpmrm0"
    found = machine.stat(path, follow=True)
    group = "" if found is None else machine.group_name(found.gid)
    members = machine.groups.get(group, (0, ()))[1]
    user = machine.users.get("license-agent")
    member = "license-agent" in members or (found is not None and user is not None and user.gid == found.gid)
    return TpmDevice(True, path, found, group, member, tuple(machine.names("/sys/class/tpm")), answers, detail)


def _judge_tpm(found: TpmDevice) -> Judgment:
    if not found.used:
        return [note("the configuration uses no TPM: a stolen disk is not defended")]
    judged: Judgment = []
    if found.path and found.found is None:
        if not found.kernel:
            return [
                fail(
                    "the kernel has found no TPM",
                    "switch the TPM on in the firmware (TPM 2.0, fTPM or PTT), then restart the machine",
                )
            ]
        return [
            fail(
                f"the kernel has a TPM ({', '.join(found.kernel)}), but {found.path} is not there",
                # A TPM that came back under a running kernel has another number, and keeps it.
                "udevadm trigger --subsystem-match=tpmrm"
                if found.path[-1:] in {name[-1:] for name in found.kernel}
                else "restart the machine: the TPM has another number since it was taken away",
            )
        ]
    if found.found is not None:
        if found.found.kind != "character device":
            return [
                fail(
                    f"{found.path} is no device but a {found.found.kind}",
                    f"rm {found.path} && udevadm trigger --subsystem-match=tpmrm",
                )
            ]
        if found.group != "tss" or found.found.mode & 0o060 != 0o060:
            judged.append(
                fail(
                    f"{found.path} belongs to group {found.group} with mode {found.found.mode:04o}, not to tss with 0660",
                    "apt install --reinstall tpm-udev && udevadm trigger --subsystem-match=tpmrm",
                )
            )
        if found.found.mode & 0o006:
            judged.append(fail(f"every user may use {found.path} (mode {found.found.mode:04o})", f"chmod 0660 {found.path}"))
        if not found.member:
            judged.append(
                fail(
                    f"the user license-agent is not in the group {found.group} of {found.path}",
                    f"usermod --append --groups {found.group} license-agent && systemctl restart license-agent",
                )
            )
    if found.answers is False:
        judged.append(
            fail(
                f"the TPM does not answer the agent: {found.detail}",
                "license-agent-cli status; see the runbook 'The TPM is missing, or cannot be used'",
            )
        )
    elif found.answers is None:
        judged.append(unknown("the agent does not say whether the TPM answers", "see agent.verdict and agent.store"))
    return judged


@dataclass(frozen=True, slots=True)
class Clock:
    """The clocks of the machine.

    Attributes:
        properties: what timedatectl shows.
        rtc: seconds since 1970 by the battery-backed clock; None without one.
        now: seconds since 1970 by the system's clock.
    """

    properties: dict[str, str]
    rtc: int | None
    now: float


def _clock(machine: Machine) -> Clock:
    done = machine.program("timedatectl", "show")
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if "NTPSynchronized" not in found:
        raise CannotTell("timedatectl does not say whether the clock is synchronized")
    rtc = machine.text_or("/sys/class/rtc/rtc0/since_epoch").strip()
    return Clock(found, int(rtc) if rtc.isdigit() else None, machine.now)


def _judge_clock(found: Clock) -> Judgment:
    judged: Judgment = []
    if found.properties["NTPSynchronized"] != "yes":
        fix = (
            "timedatectl set-ntp true"
            if found.properties.get("NTP") != "yes"
            else "timedatectl timesync-status; is the time server reached?"
        )
        judged.append(fail("the clock is not synchronized with a time server", fix))
    if found.rtc is None:
        judged.append(
            warn(
                "this machine has no battery-backed clock (RTC): after a power cut it starts at a wrong time",
                "fit an RTC, or let the time service start before the agent",
            )
        )
    elif (apart := int(abs(found.now - found.rtc))) > RTC_OFF_S and found.properties.get("LocalRTC") != "yes":
        judged.append(
            warn(
                f"the battery-backed clock differs from the system's by {quantity(apart // 60, 'minute')}",
                "hwclock --systohc; replace the battery of the mainboard if this comes again",
            )
        )
    return judged


@dataclass(frozen=True, slots=True)
class Memory:
    """How memory could reach a disk.

    Attributes:
        swaps: devices and files that are swapped to.
        swap_limits: MemorySwapMax= by unit.
        core_limits: LimitCORE= by unit.
        suid_dumpable: fs.suid_dumpable.
        crash_kernel: whether a kernel is loaded that writes all memory to disk after a crash.
    """

    swaps: tuple[str, ...]
    swap_limits: dict[str, str]
    core_limits: dict[str, str]
    suid_dumpable: str
    crash_kernel: bool


def _memory(machine: Machine) -> Memory:
    swaps = tuple(line.split()[0] for line in machine.text("/proc/swaps").splitlines()[1:] if line.strip())
    limits: dict[str, dict[str, str]] = {"MemorySwapMax": {}, "LimitCORE": {}}
    for name in (CORE, LINK):
        files = unit_files(machine, name)
        for key, found in limits.items():
            given = values([*files.shipped, *files.added], key)
            found[name] = given[-1].value if given else ""
    return Memory(
        tuple(name for name in swaps if not re.search(r"/(zram|dm-)\d+$|/mapper/", name)),
        limits["MemorySwapMax"],
        limits["LimitCORE"],
        machine.text_or("/proc/sys/fs/suid_dumpable", "0").strip(),
        machine.text_or("/sys/kernel/kexec_crash_loaded", "0").strip() == "1",
    )


def _judge_memory(found: Memory) -> Judgment:
    judged: Judgment = []
    for unit, limit in found.core_limits.items():
        if limit.split(":")[0] != "0":
            judged.append(
                fail(
                    f"{unit} may write core dumps (LimitCORE={limit or 'unset'})",
                    f"remove LimitCORE= from the drop-ins: systemctl cat {unit}",
                )
            )
    for unit, limit in found.swap_limits.items():
        if limit != "0" and found.swaps:
            judged.append(
                fail(
                    f"memory of {unit} may be swapped to {found.swaps[0]} (MemorySwapMax={limit or 'unset'})",
                    f"remove MemorySwapMax= from the drop-ins: systemctl cat {unit}",
                )
            )
    if found.suid_dumpable != "0":
        judged.append(
            warn(
                f"fs.suid_dumpable is {found.suid_dumpable}: the kernel writes core dumps of protected processes",
                "sysctl -w fs.suid_dumpable=0, and the same in /etc/sysctl.d",
            )
        )
    if found.crash_kernel:
        judged.append(
            warn(
                "a crash kernel is loaded (kdump): after a crash it writes all memory to disk, secrets too",
                "systemctl disable --now kdump-tools",
            )
        )
    return judged


def _package(machine: Machine) -> list[str]:
    if machine.uid != 0:
        raise CannotTell("some files of the package may be read by root only", machine.ask_for_root())
    lines = []
    for package in dict.fromkeys(map(package_of, services(machine))):
        done = machine.program("dpkg", "--verify", package)
        if "is not installed" in done.stderr or (done.status != 0 and not done.stdout):
            raise CannotTell(f"the package {package} is not installed", f"apt install {package}")
        lines += done.stdout.splitlines()
    return lines


_MEANT_TO_CHANGE = "/etc/license-agent/"


def _judge_package(lines: list[str]) -> Judgment:
    judged: Judgment = []
    for line in lines:
        parts = re.fullmatch(r"(\S+)\s+(c )?\s*(/.*)", line.strip())
        if parts is None:
            judged.append(unknown(f"dpkg --verify says what this check does not know: {line}"))
            continue
        result, conffile, path = parts[1], parts[2] is not None, parts[3]
        if path.startswith(_MEANT_TO_CHANGE) and result != "missing":
            continue
        if conffile and result != "missing":
            judged.append(
                warn(
                    f"{path} is not as the package has it",
                    f"compare with the package; your own rules belong in a file of their own: {_own(path)}",
                )
            )
        else:
            what = "is missing" if result == "missing" else "was changed since the package was installed"
            judged.append(
                fail(
                    f"{path} {what}",
                    f"apt install --reinstall {_owner(path)}; if nobody changed it on purpose, find out who did",
                )
            )
    return judged


def _owner(path: str) -> str:
    """The package that a file is from, by its name."""
    return "license-agent-manage" if "license-agent-manage" in path else "license-agent"


def _own(path: str) -> str:
    return "/etc/apparmor.d/local/" if path.startswith("/etc/apparmor.d/") else "see the guides"


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "tpm.device",
        "The TPM is there, the agent may use it, and it answers",
        "the device file, `/etc/group`, `/sys/class/tpm`, the agent's `status`",
        _tpm,
        _judge_tpm,
    ),
    Check(
        "machine.clock",
        "The clock is synchronized and survives a power cut",
        "`timedatectl show`, `/sys/class/rtc/rtc0`",
        _clock,
        _judge_clock,
    ),
    Check(
        "machine.memory",
        "No memory of the agent reaches a disk",
        "`/proc/swaps`, limits of the units, `fs.suid_dumpable`, crash kernel",
        _memory,
        _judge_memory,
    ),
    Check(
        "package.files",
        "The package's files are as they were installed",
        "`dpkg --verify` of license-agent, and of license-agent-manage if it is installed",
        _package,
        _judge_package,
    ),
)
