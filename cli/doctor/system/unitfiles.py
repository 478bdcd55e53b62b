"""Reads systemd's unit files with their drop-ins, and says what a drop-in makes looser than the package has it.

The rules of systemd.unit(5): files of /etc win over /run and /usr/lib, drop-ins apply in the order of their names, and an empty
assignment clears a list. Performs no IO.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

UNIT_DIRECTORIES = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
"""Where systemd looks, the strongest first."""
SHIPPED_IN = ("/usr/lib/systemd/system", "/lib/systemd/system")

_ON = frozenset({"1", "yes", "true", "on"})
SWITCHES = frozenset({
    "NoNewPrivileges", "PrivateTmp", "PrivateMounts", "PrivateDevices", "PrivateNetwork", "PrivateIPC", "ProtectClock",
    "ProtectControlGroups", "ProtectHome", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules",
    "ProtectKernelTunables", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality",
    "MemoryDenyWriteExecute", "RemoveIPC",
})  # fmt: skip
"""A value other than yes is looser, where the package says yes."""
GRANTS = frozenset({
    "AmbientCapabilities", "BindPaths", "BindReadOnlyPaths", "CapabilityBoundingSet", "DeviceAllow", "ExecPaths",
    "IPAddressAllow", "ReadWritePaths", "RestrictAddressFamilies", "SupplementaryGroups",
})  # fmt: skip
"""Lists that allow: more entries are looser."""
DENIALS = frozenset({"InaccessiblePaths", "IPAddressDeny", "NoExecPaths", "ReadOnlyPaths", "TemporaryFileSystem"})
"""Lists that forbid: fewer entries are looser."""
FIXED = frozenset({
    "AppArmorProfile", "DevicePolicy", "Environment", "EnvironmentFile", "ExecStart", "ExecStartPost", "ExecStartPre", "Group",
    "KeyringMode", "LimitCORE", "LimitMEMLOCK", "MemorySwapMax", "PAMName", "ProcSubset", "ProtectProc", "ProtectSystem",
    "RootDirectory", "RootImage", "SystemCallArchitectures", "SystemCallErrorNumber", "UMask", "User",
})  # fmt: skip
"""Nothing but the package's value is expected."""
FILTER = "SystemCallFilter"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `Key=value` of [Service], and the file that it is in."""

    key: str
    value: str
    file: str


@dataclass(frozen=True, slots=True)
class Looser:
    """What a file makes looser.

    Attributes:
        key: which setting.
        text: what became of it.
        file: which file says so.
        certain: False where a value only differs, and may be harmless.
    """

    key: str
    text: str
    file: str
    certain: bool = True


def assignments(text: str, file: str) -> list[Assignment]:
    """What a unit file assigns in [Service], in order."""
    section, found = "", []
    joined = re.sub(r"\\\n(?:[#;][^\n]*\n)*", " ", text)
    for line in joined.splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section == "Service" and "=" in line and line[0] not in "#;":
            key, _, value = line.partition("=")
            found.append(Assignment(key.strip(), value.strip(), file))
    return found


def dropin_directories(unit: str) -> list[str]:
    """The names of the directories with drop-ins of a unit: its own, those of its prefixes, that of its type."""
    stem, _, kind = unit.rpartition(".")
    parts = stem.split("-")
    prefixes = ["-".join(parts[:count]) + "-" for count in range(len(parts) - 1, 0, -1)]
    return [f"{unit}.d", *(f"{prefix}.{kind}.d" for prefix in prefixes), f"{kind}.d"]


def values(given: Iterable[Assignment], key: str) -> list[Assignment]:
    """What holds of a key that is a list: the assignments since the last empty one."""
    found: list[Assignment] = []
    for each in given:
        if each.key == key:
            found = [] if not each.value else [*found, each]
    return found


def _entries(given: Iterable[Assignment], key: str) -> dict[str, str]:
    """Each entry of a list with the file that it is from, in one spelling."""
    found: dict[str, str] = {}
    for each in values(given, key):
        words = [each.value] if key == "DeviceAllow" else each.value.split()
        for word in words:
            found.setdefault(str(PurePosixPath(word.lstrip("-"))) if word.lstrip("-").startswith("/") else word, each.file)
    return found


def _last(given: Iterable[Assignment], key: str) -> Assignment | None:
    found = [each for each in given if each.key == key]
    return found[-1] if found else None


def looser(shipped: list[Assignment], added: list[Assignment], granted: frozenset[str] = frozenset()) -> list[Looser]:
    """What the added files make looser than the shipped one.

    Args:
        shipped: the package's unit.
        added: what drop-ins assign, in the order in which systemd applies them.
        granted: entries that an administrator is meant to add to a list.
    """
    now = [*shipped, *added]
    found: list[Looser] = []
    for key in sorted({each.key for each in added}):
        if key in SWITCHES:
            found += _switched(key, shipped, now)
        elif key in GRANTS:
            before = _entries(shipped, key)
            more = {entry: file for entry, file in _entries(now, key).items() if entry not in before and entry not in granted}
            cleared = key in ("CapabilityBoundingSet", "RestrictAddressFamilies") and before and not _entries(now, key)
            found += [Looser(key, f"adds {entry}", file) for entry, file in more.items()]
            if cleared:
                found.append(Looser(key, "lifts the restriction", _file(added, key)))
        elif key in DENIALS:
            gone = [entry for entry in _entries(shipped, key) if entry not in _entries(now, key)]
            if gone:
                found.append(Looser(key, f"no longer forbids {', '.join(gone)}", _file(added, key)))
        elif key == FILTER:
            found += _filtered(shipped, now, added)
        elif key in FIXED:
            found += _changed(key, shipped, now)
    return found


def _file(added: list[Assignment], key: str) -> str:
    return next(each.file for each in reversed(added) if each.key == key)


def _switched(key: str, shipped: list[Assignment], now: list[Assignment]) -> list[Looser]:
    before, after = _last(shipped, key), _last(now, key)
    if before is None or after is None or before.value.lower() not in _ON or after.value.lower() in _ON:
        return []
    value = f"'{after.value}'" if after.value else "unset"
    return [Looser(key, f"is {value} instead of '{before.value}'", after.file)]


def _changed(key: str, shipped: list[Assignment], now: list[Assignment]) -> list[Looser]:
    before, after = [[each.value for each in values(given, key)] for given in (shipped, now)]
    if not key.startswith(("Exec", "Environment")):
        before, after = before[-1:], after[-1:]
    if before == after:
        return []
    old, new = ("'" + " ".join(found) + "'" if found else "unset" for found in (before, after))
    last = _last(now, key)
    return [
        Looser(
            key,
            f"is {new} instead of {old}",
            "" if last is None else last.file,
            certain=key not in ("Environment", "EnvironmentFile"),
        )
    ]


def _filtered(shipped: list[Assignment], now: list[Assignment], added: list[Assignment]) -> list[Looser]:
    """System calls: a line with ~ forbids, any other allows; without a line everything is allowed."""
    before, after = _entries_of_filter(shipped), _entries_of_filter(now)
    more = sorted(after[False] - before[False])
    gone = sorted(before[True] - after[True])
    found = [Looser(FILTER, f"allows {name}", _file(added, FILTER)) for name in more]
    if gone:
        found.append(Looser(FILTER, f"no longer forbids {', '.join(gone)}", _file(added, FILTER)))
    if before[False] and not after[False]:
        found.append(Looser(FILTER, "lifts the restriction", _file(added, FILTER)))
    return found


def _entries_of_filter(given: Iterable[Assignment]) -> dict[bool, set[str]]:
    found: dict[bool, set[str]] = {False: set(), True: set()}
    for each in values(given, FILTER):
        found[each.value.startswith("~")].update(each.value.lstrip("~").split())
    return found
