"""Rule sets as the real nft lists them: what each lets in and out."""

import json
import os
import subprocess

import pytest

from cli.doctor.host.ruleset import Side, side_of

pytestmark = [
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can load rules in a network of its own"),
]
CHAINS = (
    "table inet t { chain in { type filter hook input priority 0; policy drop; %s; }; "
    "chain out { type filter hook output priority 0; policy drop; %s; }; }"
)
HOOKED = "table inet t { chain d { %s; }; chain c { type filter hook input priority 0; policy drop; %s; }; }"
BOTH = {"ip", "ip6"}


def listed(rules: str, hook: str, load: str = "nft -f -") -> Side:
    """What nft lists after it has loaded the rules, in a network namespace that ends with it."""
    script = f"{load} && nft --json list ruleset"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script],
        input=rules.replace(";", "\n"),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return side_of(json.loads(done.stdout), hook)


@pytest.mark.parametrize(
    ("rules", "open_to"),
    [
        ("", []),
        ("ct state established,related accept", []),
        ("ct state vmap { established : accept, related : accept, invalid : drop }", []),
        ("oif lo accept; oifname lo accept", []),
        ("ip daddr 192.0.2.1 tcp dport 443 accept", []),
        ("ip daddr { 192.0.2.1, 192.0.2.2 } accept", []),
        ("icmpv6 type nd-neighbor-solicit accept; ip protocol icmp accept", []),
        ("udp dport 67 accept", []),
        ("tcp dport 443 accept", ["tcp port 443"]),
        ("tcp dport { 80, 443 } accept", ["tcp port 80, tcp port 443"]),
        ("udp dport 53-54 accept", ["udp port 53, udp port 54"]),
        ("ip daddr 0.0.0.0/1 accept", []),
        ("ip daddr != 192.0.2.1 accept", ["what its other conditions match"]),
        ("meta skuid 5 accept", ["what its other conditions match"]),
        ("ct state new accept", ["what its other conditions match"]),
        ("tcp dport vmap { 443 : accept, 80 : drop }", ["tcp port 443"]),
        ("limit rate 5/second accept", ["what its other conditions match"]),
        ("drop; tcp dport 443 accept", []),
    ],
)
def test_rules_of_the_output(rules: str, open_to: list[str]) -> None:
    found = listed(CHAINS % ("", rules), "output")
    assert [each.what for each in found.open] == open_to
    assert found.refuses == BOTH


def test_a_rule_that_accepts_everything_makes_the_policy_worthless() -> None:
    found = listed(CHAINS % ("accept", "counter accept"), "output")
    assert found.refuses == set() and [each.what for each in found.open] == ["everything"]
    assert listed(CHAINS % ("accept", ""), "input").refuses == set()


@pytest.mark.parametrize(
    ("rules", "refuses"),
    [
        ("", set()),
        ("table ip t { chain c { type filter hook input priority 0; policy drop; }; }", {"ip"}),
        ("table ip6 t { chain c { type filter hook input priority 0; policy drop; }; }", {"ip6"}),
        ("table inet t { chain c { type filter hook input priority 0; policy accept; }; }", set()),
        ("table inet t { chain c { type filter hook input priority 0; tcp dport 22 accept; counter drop; }; }", BOTH),
        ("table inet t { chain c { type filter hook input priority 0; tcp dport 22 accept; log reject; }; }", BOTH),
        ("table inet t { chain c { type filter hook input priority 0; tcp dport 22 drop; }; }", set()),
        ("table inet t { chain c { type filter hook prerouting priority 0; policy drop; }; }", set()),
        (HOOKED % ("accept", "jump d"), set()),
        (
            HOOKED % ("tcp dport 1 accept", "goto d"),
            BOTH,
        ),
    ],
)
def test_what_is_refused_unless_listed(rules: str, refuses: set[str]) -> None:
    assert listed(rules, "input").refuses == refuses


def test_ports_of_a_chain_that_is_jumped_to_are_listed() -> None:
    rules = HOOKED % ("tcp dport { 22, 80 } accept", "jump d")
    assert listed(rules, "input").ports == {("tcp", 22), ("tcp", 80)}


def test_debians_example_for_a_workstation() -> None:
    found = listed("", "input", "nft -f /usr/share/doc/nftables/examples/workstation.nft")
    assert found.refuses == BOTH and found.open == []
