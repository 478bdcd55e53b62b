"""Checks the Wi-Fi networks that the host joins: WPA3, WPA2-Enterprise, or a long key that is renewed each quarter.

Reads the files of NetworkManager, wpa_supplicant and iwd. A key is measured and never shown.
"""

import configparser
import re
from dataclasses import dataclass
from typing import Any

from cli.doctor.machine import CannotTell, Machine
from cli.doctor.verdict import Check, Judgment, fail, note, unknown, warn

DAY_S = 86_400
SHORT_CHARS = 16
"""A key that everybody of a network shares has more characters than this."""
RENEW_DAYS = 92
OPEN, SHARED, PERSONAL3, ENTERPRISE, WEP, MIXED = "open", "shared key", "WPA3", "enterprise", "WEP", "WPA3 or a shared key"


@dataclass(frozen=True, slots=True)
class Wifi:
    """A network that the host joins.

    Attributes:
        name: of the network.
        file: that names it.
        kind: how it is protected.
        key_chars: length of a shared key; None if the file does not hold it as text.
        mtime: when the file was last changed.
    """

    name: str
    file: str
    kind: str
    key_chars: int | None
    mtime: float


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks, the wireless devices, and the time."""

    networks: tuple[Wifi, ...]
    devices: tuple[str, ...]
    now: float


_MANAGER = (
    "/etc/NetworkManager/system-connections",
    "/run/NetworkManager/system-connections",
    "/usr/lib/NetworkManager/system-connections",
)
_IWD = "/var/lib/iwd"


def _networks(machine: Machine) -> Networks:
    devices = tuple(
        name
        for name in machine.names("/sys/class/net")
        if machine.stat(f"/sys/class/net/{name}/wireless", follow=True) is not None
    )
    found: list[Wifi] = []
    try:
        for place in _MANAGER:
            for name in machine.names(place):
                if name.endswith(".nmconnection"):
                    found += _of_manager(machine, f"{place}/{name}")
        for name in machine.names("/etc/wpa_supplicant"):
            if name.endswith(".conf"):
                found += _of_supplicant(machine, f"/etc/wpa_supplicant/{name}")
        for name in machine.names(_IWD):
            found += _of_iwd(machine, name)
    except PermissionError:
        raise CannotTell("only root may read how Wi-Fi networks are protected", machine.ask_for_root()) from None
    return Networks(tuple(found), devices, machine.now)


def _parser(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    parser.read_string(text)
    return parser


def _mtime(machine: Machine, path: str) -> float:
    stat = machine.stat(path, follow=True)
    return 0.0 if stat is None else stat.mtime


def _of_manager(machine: Machine, path: str) -> list[Wifi]:
    parser = _parser(machine.text(path))
    if parser.get("connection", "type", fallback="") not in ("wifi", "802-11-wireless"):
        return []
    name = parser.get("wifi", "ssid", fallback=parser.get("connection", "id", fallback=path))
    section = next((name for name in ("wifi-security", "802-11-wireless-security") if parser.has_section(name)), None)
    how = parser.get(section, "key-mgmt", fallback="none") if section else ""
    kinds = {"": OPEN, "owe": OPEN, "none": WEP, "ieee8021x": WEP, "wpa-psk": SHARED, "sae": PERSONAL3}
    kind = kinds.get(how, ENTERPRISE if how.startswith("wpa-eap") else how)
    psk = parser.get(section, "psk", fallback=None) if section else None
    return [Wifi(name, path, kind, _length(psk), _mtime(machine, path))]


def _length(psk: str | None) -> int | None:
    """How long a key is; None for one that is stored as a hash or elsewhere."""
    return None if not psk or re.fullmatch(r"[0-9A-Fa-f]{64}", psk) else len(psk)


def _of_supplicant(machine: Machine, path: str) -> list[Wifi]:
    found = []
    text = "\n".join(line for line in machine.text(path).splitlines() if not line.lstrip().startswith("#"))
    for block in re.findall(r"^\s*network\s*=\s*\{(.*?)^\s*\}", text, re.MULTILINE | re.DOTALL):
        keys = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", block, re.MULTILINE))
        name = keys.get("ssid", "?").strip('"')
        how = set(keys.get("key_mgmt", "WPA-PSK WPA-EAP").split())
        psk = keys.get("sae_password", keys.get("psk"))
        quoted = psk is not None and psk.startswith('"')
        if "NONE" in how or "OWE" in how:
            kind = WEP if any(key.startswith("wep_key") for key in keys) else OPEN
        elif any(word.startswith(("SAE", "FT-SAE")) for word in how):
            kind = MIXED if any("PSK" in word for word in how) else PERSONAL3
        elif psk is None or not any("PSK" in word for word in how):
            kind = ENTERPRISE
        else:
            kind = SHARED
        found.append(Wifi(name, path, kind, len(psk) - 2 if psk is not None and quoted else None, _mtime(machine, path)))
    return found


def _of_iwd(machine: Machine, name: str) -> list[Wifi]:
    stem, _, kind = name.rpartition(".")
    if kind not in ("open", "psk", "8021x"):
        return []
    path = f"{_IWD}/{name}"
    # Names with unusual characters are written as = and hexadecimal digits.
    shown = bytes.fromhex(stem[1:]).decode("utf-8", "replace") if re.fullmatch(r"=([0-9a-f]{2})+", stem) else stem
    if kind != "psk":
        return [Wifi(shown, path, OPEN if kind == "open" else ENTERPRISE, None, _mtime(machine, path))]
    psk = _parser(machine.text(path)).get("Security", "Passphrase", fallback=None)
    return [Wifi(shown, path, MIXED, _length(psk), _mtime(machine, path))]


def _judge_networks(found: Networks) -> Judgment:
    judged: Judgment = []
    for wifi in found.networks:
        if wifi.kind == OPEN:
            judged.append(
                fail(
                    f"the Wi-Fi network {wifi.name} has no key: everybody can join and listen",
                    f"use WPA3 or WPA2-Enterprise, or remove {wifi.file}",
                )
            )
        elif wifi.kind == WEP:
            judged.append(
                fail(
                    f"the Wi-Fi network {wifi.name} uses WEP, which is broken",
                    f"use WPA3 or WPA2-Enterprise, or remove {wifi.file}",
                )
            )
        elif wifi.kind in (SHARED, MIXED):
            judged += _judge_shared(wifi, found.now)
        elif wifi.kind not in (PERSONAL3, ENTERPRISE):
            judged.append(
                unknown(
                    f"the Wi-Fi network {wifi.name} has key-mgmt '{wifi.kind}', which is not known here",
                    f"look at {wifi.file}",
                )
            )
    if judged:
        return judged
    if found.networks:
        return [note(", ".join(f"{wifi.name}: {wifi.kind}" for wifi in found.networks))]
    if found.devices:
        return [note(f"{', '.join(found.devices)} joins no network that is configured")]
    return [note("this machine has no Wi-Fi")]


def _judge_shared(wifi: Wifi, now: float) -> Judgment:
    judged: Judgment = []
    renew = "change the key at the access point and here; better: WPA3 or WPA2-Enterprise"
    if wifi.key_chars is None:
        judged.append(
            unknown(
                f"how long the key of the Wi-Fi network {wifi.name} is cannot be seen in {wifi.file}",
                f"more than {SHORT_CHARS} characters",
            )
        )
    elif wifi.key_chars <= SHORT_CHARS:
        judged.append(
            fail(
                f"the key of the Wi-Fi network {wifi.name} has {wifi.key_chars} characters; it needs more than {SHORT_CHARS}",
                renew,
            )
        )
    days = int(now - wifi.mtime) // DAY_S
    if days > RENEW_DAYS:
        judged.append(
            warn(
                f"the key of the Wi-Fi network {wifi.name} is {days} days old, more than a quarter",
                renew,
            )
        )
    return judged


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "host.wifi",
        "Wi-Fi uses WPA3, WPA2-Enterprise or a long key of this quarter",
        "files of NetworkManager, wpa_supplicant and iwd",
        _networks,
        _judge_networks,
    ),
)
