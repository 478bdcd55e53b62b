"""The text of the rules for nftables, and what is refused before it is written."""

import json
import re

import pytest
from click.testing import CliRunner

from cli.doctor.host.nftables import BadRule, allowed, nameservers, network, of_link, rule_set
from cli.doctor.layout import Destination
from cli.main import main

SERVER = Destination("upstream.server", "license.example", 8443)


def test_a_name_becomes_its_addresses() -> None:
    found = of_link(
        [SERVER, Destination("config.toml", "2001:db8::7", 443)], {"license.example": ["192.0.2.10", "2001:db8::1"]}, 989
    )
    assert [each.rule("daddr") for each in found] == [
        'meta skuid 989 ip daddr 192.0.2.10 tcp dport 8443 accept comment "license agent, upstream.server"',
        'meta skuid 989 ip6 daddr 2001:db8::1 tcp dport 8443 accept comment "license agent, upstream.server"',
        'meta skuid 989 ip6 daddr 2001:db8::7 tcp dport 443 accept comment "license agent, config.toml"',
    ]


def test_a_name_without_an_address_is_refused_with_what_to_do() -> None:
    with pytest.raises(BadRule, match=r"--address license\.example=ADDRESS"):
        of_link([SERVER], {}, 989)


def test_without_a_server_there_are_no_rules() -> None:
    with pytest.raises(BadRule, match="names a license server"):
        of_link([], {}, 989)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("tcp:192.0.2.0/24:9100", "ip saddr 192.0.2.0/24 tcp dport 9100 accept"),
        ("udp:[2001:db8::1]:514", "ip6 saddr 2001:db8::1 udp dport 514 accept"),
        ("tcp:192.0.2.7/24:22", "ip saddr 192.0.2.0/24 tcp dport 22 accept"),
        ("tcp:0.0.0.0/0:80", "ip saddr 0.0.0.0/0 tcp dport 80 accept"),
    ],
)
def test_rules_of_options(text: str, rule: str) -> None:
    assert allowed(text).rule("saddr") == f'{rule} comment "listed"'


@pytest.mark.parametrize(
    "text",
    ["", "tcp", "tcp:192.0.2.1", "icmp:192.0.2.1:1", "tcp:192.0.2.1:0", "tcp:192.0.2.1:65536", "tcp:192.0.2.999:1", "tcp:[x]:1",
     "tcp:192.0.2.0/99:1", 'tcp:1.1.1.1:1" drop', "tcp:192.0.2.1:22; flush ruleset", "tcp:2001:db8::1:5"],
)  # fmt: skip
def test_bad_rules_are_refused(text: str) -> None:
    with pytest.raises(BadRule):
        allowed(text)


def test_bad_addresses_are_refused() -> None:
    for text in ("", "x", "1.2.3.4 drop", "300.1.1.1"):
        with pytest.raises(BadRule):
            network(text)


def test_resolvers_on_this_machine_need_no_rule() -> None:
    text = "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\noptions edns0\nnameserver ::1\n"
    assert nameservers(text) == ["192.0.2.53", "fe80::1"]


def test_a_rule_is_written_once() -> None:
    rule = allowed("tcp:192.0.2.1:1")
    assert rule_set([rule, rule], [], "x").count("192.0.2.1") == 1


def run(tmp_path, *options: str):  # type: ignore[no-untyped-def]
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "link.toml").write_text('[upstream.server]\nurl = "https://192.0.2.10:8443"\n')
    return CliRunner().invoke(
        main, ["doctor", "--config", str(tmp_path / "config.toml"), "nftables", "--link-uid", "989", *options]
    )


def test_the_command_prints_what_link_toml_and_options_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    done = run(
        tmp_path,
        "--dns",
        "192.0.2.53",
        "--ntp",
        "192.0.2.123",
        "--ssh-from",
        "192.0.2.0/24",
        "--allow-out",
        "tcp:192.0.2.99:6514",
    )
    assert done.exit_code == 0 and done.stderr == ""
    rules = [line.strip() for line in done.stdout.splitlines() if "192.0.2" in line]
    assert rules == [
        'ip saddr 192.0.2.0/24 tcp dport 22 accept comment "SSH"',
        'meta skuid 989 ip daddr 192.0.2.10 tcp dport 8443 accept comment "license agent, upstream.server"',
        'ip daddr 192.0.2.53 meta l4proto { tcp, udp } th dport 53 accept comment "DNS"',
        'ip daddr 192.0.2.123 udp dport 123 accept comment "NTP"',
        'ip daddr 192.0.2.99 tcp dport 6514 accept comment "listed"',
    ]
    again = run(tmp_path, "--dns", "192.0.2.53", "--json")
    assert json.loads(again.stdout)["rules"].startswith("#!/usr/sbin/nft -f\n")


def test_the_command_says_what_is_easily_forgotten(tmp_path) -> None:  # type: ignore[no-untyped-def]
    done = run(tmp_path, "--dns", "192.0.2.53")
    assert "--ntp" in done.stderr and "--ssh-from" in done.stderr and "nft" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dns", "resolver"], "'resolver' is neither an IP address"),
        (["--address", "x"], "'x' is not HOST=ADDRESS"),
        (["--allow-in", "22"], "is not PROTOCOL:ADDRESS:PORT"),
    ],
)
def test_wrong_usage(tmp_path, options: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    done = run(tmp_path, *options)
    assert done.exit_code == 2 and words in re.sub(r"\s+", " ", done.stderr)
