"""The network rules of the host: each broken rule is named by its check, and nothing that could not be seen passes."""

import json
import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.doctor.host.ruleset import side_of
from cli.doctor.machine import Ran
from cli.doctor.table import CHECKS, HOST_CHECKS
from cli.doctor.verdict import Result, State
from tests.support.madeup import DAY, NOW, MadeUp

NFT = "nft --json list ruleset"
CHAIN = {"family": "inet", "table": "t", "type": "filter", "policy": "drop"}
CLOSED = json.dumps({"nftables": [{"chain": {**CHAIN, "name": hook, "hook": hook}} for hook in ("input", "output")]})
SSHD = """port 22
permitrootlogin no
pubkeyauthentication yes
passwordauthentication no
kbdinteractiveauthentication no
permitemptypasswords no
hostbasedauthentication no
x11forwarding no
"""
DAYS_NOW = NOW // DAY
SHADOW = f"root:*:{DAYS_NOW}:0:99999:7:::\ntill:$y$x:{DAYS_NOW - 400}:0:99999:7:::\n"
TCP = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LOCAL = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0\n"
EVERYWHERE = "   1: 00000000:238C 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0\n"
EVERYWHERE6 = f"   1: {32 * '0'}:238C {32 * '0'}:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1\n"
WIFI = "[connection]\nid=shop\ntype=wifi\n[wifi]\nssid=shop\n"


def login(machine: MadeUp, uid: int, when: int) -> None:
    """A record in lastlog, in the file's form."""
    path = machine.at("/var/log/lastlog")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(292 * uid) + struct.pack("=i32s256s", when, b"tty1", b""))


def age(machine: MadeUp, path: str, days: int) -> None:
    """Says how old a file is."""
    os.utime(machine.at(path), (NOW - days * DAY, NOW - days * DAY))


@pytest.fixture
def machine(tmp_path: Path) -> MadeUp:
    """A host that keeps every rule."""
    made = MadeUp(tmp_path)
    made.ran[NFT] = Ran(0, CLOSED)
    made.ran["/usr/sbin/sshd -T"] = Ran(0, SSHD)
    made.put("/usr/sbin/sshd", "")
    made.put("/etc/shadow", SHADOW)
    made.put("/proc/net/tcp", TCP + LOCAL)
    made.put("/proc/net/if_inet6", "00000000000000000000000000000001 01 80 10 80 lo\n")
    for name in ("ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "sshd_config"):
        made.put(f"/etc/ssh/{name}", "")
        age(made, f"/etc/ssh/{name}", 10)
    login(made, 1000, NOW - 5 * DAY)
    return made


def looked(machine: MadeUp) -> dict[str, Result]:
    return {check.id: check.make(machine) for check in HOST_CHECKS}


def test_a_host_that_keeps_the_rules_passes(machine: MadeUp) -> None:
    found = looked(machine)
    assert {name: each.findings for name, each in found.items() if each.state is not State.PASS} == {}


def test_ids_are_unique_and_never_change() -> None:
    ids = [check.id for check in HOST_CHECKS]
    assert ids == ["host.inbound", "host.outbound", "host.listening", "host.ssh", "host.accounts", "host.keys", "host.wifi"]
    assert not {check.id for check in CHECKS} & set(ids)


def sshd(old: str, new: str) -> Callable[[MadeUp], None]:
    return lambda machine: machine.ran.update({"/usr/sbin/sshd -T": Ran(0, SSHD.replace(old, new))})


def wifi(
    content: str, days: int = 1, path: str = "/etc/NetworkManager/system-connections/shop.nmconnection"
) -> Callable[[MadeUp], None]:
    def put(machine: MadeUp) -> None:
        machine.put(path, content)
        age(machine, path, days)

    return put


def keys(days: int) -> Callable[[MadeUp], None]:
    return wifi("# mine\nssh-ed25519 AAAA a@b\nssh-ed25519 AAAB c@d\n", days, "/home/till/.ssh/authorized_keys")


def another(line: str, secret: str) -> Callable[[MadeUp], None]:
    def put(machine: MadeUp) -> None:
        machine.put("/etc/passwd", machine.text("/etc/passwd") + line)
        machine.put("/etc/shadow", SHADOW + secret)

    return put


def exposed(machine: MadeUp) -> None:
    machine.ran[NFT] = Ran(0, '{"nftables": []}')
    machine.put("/proc/net/tcp", TCP + LOCAL + EVERYWHERE)
    machine.put("/proc/net/tcp6", TCP + EVERYWHERE6)


def nothing_recorded(machine: MadeUp) -> None:
    machine.at("/var/log/lastlog").unlink()


FAULTS: list[tuple[str, State, str, Callable[[MadeUp], None], set[str]]] = [
    (
        "host.inbound",
        State.FAIL,
        "inbound IPv4 and IPv6 is open",
        lambda m: m.ran.update({NFT: Ran(0, CLOSED.replace('"hook": "input"', '"hook": "forward"'))}),
        set(),
    ),
    (
        "host.outbound",
        State.FAIL,
        "outbound IPv4 and IPv6 is open",
        lambda m: m.ran.update({NFT: Ran(0, CLOSED.replace('"hook": "output"', '"hook": "forward"'))}),
        set(),
    ),
    (
        "host.listening",
        State.WARN,
        "tcp port 9100 of user till is open to others at 0.0.0.0",
        exposed,
        {"host.inbound", "host.outbound"},
    ),
    (
        "host.ssh",
        State.FAIL,
        "sshd has PasswordAuthentication yes",
        sshd("passwordauthentication no", "passwordauthentication yes"),
        set(),
    ),
    ("host.ssh", State.FAIL, "sshd has PermitRootLogin yes", sshd("permitrootlogin no", "permitrootlogin yes"), set()),
    (
        "host.ssh",
        State.WARN,
        "sshd has PermitRootLogin prohibit-password",
        sshd("permitrootlogin no", "permitrootlogin prohibit-password"),
        set(),
    ),
    (
        "host.ssh",
        State.FAIL,
        "sshd has PubkeyAuthentication no",
        sshd("pubkeyauthentication yes", "pubkeyauthentication no"),
        set(),
    ),
    (
        "host.ssh",
        State.UNKNOWN,
        "does not say how KbdInteractiveAuthentication",
        sshd("kbdinteractiveauthentication no\n", ""),
        set(),
    ),
    (
        "host.accounts",
        State.WARN,
        "nobody has signed in as till for 200 days",
        lambda m: login(m, 1000, NOW - 200 * DAY),
        set(),
    ),
    (
        "host.accounts",
        State.WARN,
        "nobody has signed in as old ever",
        another("old:x:1001:1001::/home/old:/bin/bash\n", "old:$y$x:1000:0:99999:7:::\n"),
        set(),
    ),
    (
        "host.accounts",
        State.FAIL,
        "toor is root by another name",
        another("toor:x:0:0::/root:/bin/bash\n", f"toor:*:{DAYS_NOW}:0:99999:7:::\n"),
        set(),
    ),
    (
        "host.accounts",
        State.FAIL,
        "guest has a shell and an empty password",
        another("guest:x:1002:1002::/home/guest:/bin/sh\n", f"guest::{DAYS_NOW}:0:99999:7:::\n"),
        set(),
    ),
    ("host.accounts", State.UNKNOWN, "nothing on this machine records who signs in, so till", nothing_recorded, set()),
    ("host.keys", State.WARN, "the 2 keys in /home/till/.ssh/authorized_keys did not change for 200 days", keys(200), set()),
    (
        "host.keys",
        State.WARN,
        "the host keys ssh_host_ed25519_key are older",
        lambda m: age(m, "/etc/ssh/ssh_host_ed25519_key", 400),
        set(),
    ),
    ("host.wifi", State.FAIL, "shop has no key", wifi(WIFI), set()),
    ("host.wifi", State.FAIL, "shop uses WEP", wifi(WIFI + "[wifi-security]\nkey-mgmt=none\n"), set()),
    ("host.wifi", State.FAIL, "shop has 8 characters", wifi(WIFI + "[wifi-security]\nkey-mgmt=wpa-psk\npsk=password\n"), set()),
    (
        "host.wifi",
        State.FAIL,
        "shop has 16 characters",
        wifi(WIFI + "[wifi-security]\nkey-mgmt=wpa-psk\npsk=0123456789abcdef\n"),
        set(),
    ),
    (
        "host.wifi",
        State.WARN,
        "is 100 days old",
        wifi(WIFI + "[wifi-security]\nkey-mgmt=wpa-psk\npsk=0123456789abcdef0\n", 100),
        set(),
    ),
    ("host.wifi", State.UNKNOWN, "cannot be seen", wifi(WIFI + "[wifi-security]\nkey-mgmt=wpa-psk\npsk-flags=1\n"), set()),
    (
        "host.wifi",
        State.FAIL,
        "shop has 8 characters",
        wifi('network={\n ssid="shop"\n psk="password"\n}\n', 1, "/etc/wpa_supplicant/wpa_supplicant.conf"),
        set(),
    ),
    (
        "host.wifi",
        State.FAIL,
        "shop has no key",
        wifi('network={\n\tssid="shop"\n\tkey_mgmt=NONE\n}\n', 1, "/etc/wpa_supplicant/wpa_supplicant-wlan0.conf"),
        set(),
    ),
    (
        "host.wifi",
        State.FAIL,
        "shop has 8 characters",
        wifi("[Security]\nPassphrase=password\n", 1, "/var/lib/iwd/shop.psk"),
        set(),
    ),
    ("host.wifi", State.FAIL, "my shop has no key", wifi("", 1, "/var/lib/iwd/=6d792073686f70.open"), set()),
]


@pytest.mark.parametrize(("check", "state", "cause", "put", "also"), FAULTS, ids=[f"{row[0]}: {row[2]}" for row in FAULTS])
def test_a_broken_rule_is_named(
    machine: MadeUp, check: str, state: State, cause: str, put: Callable[[MadeUp], None], also: set[str]
) -> None:
    put(machine)
    found = looked(machine)
    causes = [finding.cause for finding in found[check].findings if finding.state is state]
    assert found[check].state is state and any(cause in each for each in causes), found[check]
    assert {name for name, each in found.items() if each.state is not State.PASS} == {check, *also}
    assert "password" not in "".join(each for each in causes if "shop" in each), "a key is never shown"


@pytest.mark.parametrize(
    "put",
    [
        wifi(WIFI + "[wifi-security]\nkey-mgmt=sae\npsk=password\n", 400),
        wifi(WIFI + "[wifi-security]\nkey-mgmt=wpa-eap\n", 400),
        wifi(WIFI + "[wifi-security]\nkey-mgmt=wpa-psk\npsk=0123456789abcdef0\n", 90),
        wifi("[connection]\ntype=ethernet\n"),
        wifi('network={\n ssid="s"\n key_mgmt=SAE\n sae_password="password"\n}\n', 9, "/etc/wpa_supplicant/w.conf"),
        wifi('#network={\n# ssid="s"\n# key_mgmt=NONE\n#}\n', 9, "/etc/wpa_supplicant/w.conf"),
        wifi("", 9, "/var/lib/iwd/shop.8021x"),
        keys(100),
        another("old:x:1001:1001::/home/old:/bin/bash\n", "old:!$y$x:1000:0:99999:7:::\n"),
        lambda machine: machine.at("/usr/sbin/sshd").unlink(),
    ],
)
def test_what_keeps_the_rules_passes(machine: MadeUp, put: Callable[[MadeUp], None]) -> None:
    put(machine)
    assert {name: each.findings for name, each in looked(machine).items() if each.state is not State.PASS} == {}


def test_the_records_of_debian_13_count_too(machine: MadeUp) -> None:
    login(machine, 1000, NOW - 300 * DAY)
    assert looked(machine)["host.accounts"].state is State.WARN
    path = machine.at("/var/lib/lastlog/lastlog2.db")
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE Lastlog2 (Name TEXT PRIMARY KEY, Time INTEGER, TTY TEXT, RemoteHost TEXT, Service TEXT)")
        database.execute("INSERT INTO Lastlog2 VALUES ('till', ?, 'tty1', '', 'login')", (NOW - DAY,))
    database.close()
    assert looked(machine)["host.accounts"].state is State.PASS


def test_a_sign_in_in_wtmp_counts(machine: MadeUp) -> None:
    login(machine, 1000, 0)
    entry = struct.pack("=hi32s4s32s256shhiii", 7, 1, b"tty1", b"1", b"till", b"", 0, 0, 0, NOW - DAY, 0)
    machine.at("/var/log/wtmp").write_bytes(entry.ljust(384, b"\0"))
    assert looked(machine)["host.accounts"].state is State.PASS


def test_what_only_root_may_see_is_not_a_pass_for_others(machine: MadeUp) -> None:
    machine.uid = 1000
    machine.forbidden = {"/etc/shadow", "/etc/NetworkManager/system-connections/shop.nmconnection"}
    machine.put("/etc/NetworkManager/system-connections/shop.nmconnection", "")
    machine.put("/proc/net/tcp", TCP + EVERYWHERE)
    found = looked(machine)
    assert {name for name, each in found.items() if each.state is State.UNKNOWN} == set(found) - {"host.keys"}
    assert all("as root" in each.findings[0].fix for name, each in found.items() if name != "host.keys")


@pytest.mark.parametrize(
    ("command", "check"), [(NFT, "host.inbound"), (NFT, "host.outbound"), ("/usr/sbin/sshd -T", "host.ssh")]
)
def test_a_program_that_is_missing_or_refuses_is_not_a_pass(machine: MadeUp, command: str, check: str) -> None:
    machine.ran[command] = Ran(1, "", "cannot")
    assert looked(machine)[check].state is State.UNKNOWN
    del machine.ran[command]
    assert looked(machine)[check].state is State.UNKNOWN


def test_rules_of_the_former_iptables_are_not_seen_and_so_are_no_pass(machine: MadeUp) -> None:
    machine.put("/proc/net/ip_tables_names", "filter\n")
    assert looked(machine)["host.inbound"].state is State.UNKNOWN


def test_a_rule_set_that_names_an_unknown_form_is_not_a_pass(machine: MadeUp) -> None:
    machine.ran[NFT] = Ran(0, '{"nftables": [{"rule": {"family": "inet", "table": "x", "chain": "gone", "expr": []}}]}')
    assert looked(machine)["host.inbound"].state is State.UNKNOWN


def test_of_an_empty_rule_set_nothing_is_refused() -> None:
    side = side_of({"nftables": []}, "input")
    assert (side.refuses, side.open, side.ports) == (set(), [], set())
