"""The rules of `doctor nftables` in a network of their own: what is listed passes, the kernel refuses everything else."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stand import BIN
from tests.support.waiting import READY_S

pytestmark = [
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network of its own"),
]
TILL, SERVER, OTHER, RESOLVER = "192.0.2.2", "192.0.2.10", "192.0.2.11", "192.0.2.53"
LINK_UID, OTHER_UID = 61989, 61990
SILENCE_S = 2.0
"""How long to wait for an answer that must not come. A slow machine makes no answer of none."""

SERVE = """
import selectors, socket, sys
chosen = selectors.DefaultSelector()
for port in (22, 443, 8443, 9100):
    listener = socket.create_server(("0.0.0.0", port))
    chosen.register(listener, selectors.EVENT_READ)
for address in sys.argv[1:]:  # an answer comes from the address that was asked
    for port in (53, 123, 514):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind((address, port))
        chosen.register(datagrams, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in chosen.select():
        if key.fileobj.type == socket.SOCK_STREAM:
            key.fileobj.accept()[0].close()
        else:
            data, peer = key.fileobj.recvfrom(100)
            key.fileobj.sendto(data, peer)
"""
ASK = """
import os, socket, sys
uid, kind, source, address, port, seconds = sys.argv[1:]
os.setuid(int(uid))
kind = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
with socket.socket(socket.AF_INET, kind) as asker:
    asker.settimeout(float(seconds))
    if source:
        asker.bind((source, 0))
    try:
        asker.connect((address, int(port)))
        if kind == socket.SOCK_DGRAM:
            asker.send(b"?")
            asker.recv(10)
        print("passed")
    except OSError as error:
        print("refused", error)
"""


class Network:
    """A till and everybody else, each in a network namespace, joined by a cable."""

    def __init__(self, name: str, directory: Path) -> None:
        self.till, self.rest = f"{name}-till", f"{name}-rest"
        self.config = directory / "config.toml"
        self.config.write_text("")
        (directory / "link.toml").write_text(f'[upstream.server]\nurl = "https://{SERVER}:8443"\n')

    def inside(self, namespace: str, *command: str, stdin: str | None = None) -> str:
        """What a command prints that runs in a namespace, and ends well there."""
        whole = ["ip", "netns", "exec", namespace, *command]
        done = subprocess.run(whole, input=stdin, capture_output=True, text=True, check=False, timeout=READY_S)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def load(self, *options: str) -> None:
        """Loads the rules that the command prints."""
        command = [
            "license-agent-cli",
            "doctor",
            "--config",
            str(self.config),
            "nftables",
            "--link-uid",
            str(LINK_UID),
            *options,
        ]
        printed = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True, check=True, timeout=READY_S)
        self.inside(self.till, "nft", "-f", "-", stdin=printed.stdout)

    def out(self, kind: str, address: str, port: int, uid: int = LINK_UID, *, due: bool = True) -> bool:
        """Whether the till gets an answer there; one that is due is waited for."""
        return self._asks(self.till, kind, "", address, port, uid, due)

    def into(self, port: int, source: str, *, due: bool = True) -> bool:
        """Whether somebody else gets an answer of the till."""
        return self._asks(self.rest, "tcp", source, TILL, port, 0, due)

    def _asks(self, namespace: str, kind: str, source: str, address: str, port: int, uid: int, due: bool) -> bool:
        words = [str(uid), kind, source, address, str(port), str(READY_S / 2 if due else SILENCE_S)]
        return self.inside(namespace, sys.executable, "-c", ASK, *words).startswith("passed")

    def counted(self) -> dict[str, int]:
        """How many packets the two last rules have refused, by their comments."""
        reply = json.loads(self.inside(self.till, "nft", "--json", "list", "ruleset"))
        rules = [entry["rule"] for entry in reply["nftables"] if "rule" in entry]
        return {
            rule["comment"]: part["counter"]["packets"]
            for rule in rules
            for part in rule["expr"]
            if "counter" in part and "comment" in rule
        }


@contextlib.contextmanager
def serving(namespace: str, *addresses: str) -> Iterator[None]:
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", SERVE, *addresses], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    name = f"la{os.getpid()}"
    made = Network(name, tmp_path_factory.mktemp("rules"))
    cable = (f"{name}t", f"{name}r")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, timeout=READY_S)

    with contextlib.ExitStack() as stack:
        for namespace in (made.till, made.rest):
            ip("netns", "add", namespace)
            stack.callback(ip, "netns", "delete", namespace)
        ip("link", "add", cable[0], "netns", made.till, "type", "veth", "peer", "name", cable[1], "netns", made.rest)
        for namespace, end, addresses in ((made.till, cable[0], [TILL]), (made.rest, cable[1], [SERVER, OTHER, RESOLVER])):
            for address in addresses:
                ip("-n", namespace, "address", "add", f"{address}/24", "dev", end)
            ip("-n", namespace, "link", "set", end, "up")
            ip("-n", namespace, "link", "set", "lo", "up")
        stack.enter_context(serving(made.till, TILL))
        stack.enter_context(serving(made.rest, SERVER, OTHER, RESOLVER))
        yield made


def test_before_the_rules_are_loaded_everything_passes(network: Network) -> None:
    """Without this, what follows would show nothing."""
    network.inside(network.till, "nft", "flush", "ruleset")
    for kind, address, port in (
        ("tcp", SERVER, 8443),
        ("tcp", OTHER, 8443),
        ("tcp", SERVER, 443),
        ("udp", RESOLVER, 53),
        ("udp", OTHER, 53),
    ):
        assert network.out(kind, address, port), (kind, address, port)
    assert network.into(22, SERVER) and network.into(9100, OTHER)


def test_only_what_is_listed_passes(network: Network) -> None:
    network.load(
        "--dns",
        RESOLVER,
        "--ntp",
        OTHER,
        "--ssh-from",
        SERVER,
        "--allow-out",
        f"udp:{OTHER}:514",
        "--allow-in",
        f"tcp:{OTHER}:9100",
    )
    assert network.out("tcp", SERVER, 8443), "the link reaches the license server"
    assert not network.out("tcp", SERVER, 8443, OTHER_UID, due=False), "and nobody else does"
    assert not network.out("tcp", SERVER, 8443, 0, due=False), "root neither"
    assert not network.out("tcp", OTHER, 8443, due=False), "another destination"
    assert not network.out("tcp", SERVER, 443, due=False), "another port"
    for uid in (LINK_UID, OTHER_UID):
        assert network.out("udp", RESOLVER, 53, uid)
        assert network.out("udp", OTHER, 123, uid)
        assert network.out("udp", OTHER, 514, uid)
        assert not network.out("udp", OTHER, 53, uid, due=False), "a resolver that is not listed"
    assert network.out("tcp", "127.0.0.1", 8443, OTHER_UID), "this machine itself is not concerned"

    assert network.into(22, SERVER) and not network.into(22, OTHER, due=False)
    assert network.into(9100, OTHER) and not network.into(9100, SERVER, due=False)
    assert not network.into(443, SERVER, due=False)
    counted = network.counted()
    assert counted["refused"] >= 6 and counted["dropped"] >= 3, counted


def test_doctor_finds_the_host_closed_by_these_rules_and_open_without_them(network: Network) -> None:
    network.load("--dns", RESOLVER, "--ssh-from", "192.0.2.0/24")
    assert states(network) == {"host.inbound": "pass", "host.outbound": "pass", "host.listening": "pass"}
    network.inside(
        network.till, "nft", "add", "rule", "inet", "license_agent_host", "outbound", "tcp", "dport", "443", "accept"
    )
    # It comes after the rule that refuses everything, and so opens nothing.
    assert states(network)["host.outbound"] == "pass"
    network.inside(
        network.till, "nft", "insert", "rule", "inet", "license_agent_host", "outbound", "tcp", "dport", "443", "accept"
    )
    assert states(network)["host.outbound"] == "warn" and network.out("tcp", OTHER, 443)
    network.inside(network.till, "nft", "flush", "ruleset")
    assert states(network) == {"host.inbound": "fail", "host.outbound": "fail", "host.listening": "warn"}


def test_loading_again_replaces_the_rules(network: Network) -> None:
    network.load("--dns", RESOLVER)
    before = network.inside(network.till, "nft", "--stateless", "list", "ruleset")
    network.load("--dns", RESOLVER)
    assert network.inside(network.till, "nft", "--stateless", "list", "ruleset") == before


def states(network: Network) -> dict[str, str]:
    command = [str(BIN / "license-agent-cli"), "--json", "doctor", "--host", "--config", str(network.config)]
    done = subprocess.run(
        ["ip", "netns", "exec", network.till, *command], capture_output=True, text=True, check=False, timeout=READY_S
    )
    found = {check["id"]: check["state"] for check in json.loads(done.stdout)["checks"]}
    return {name: found[name] for name in ("host.inbound", "host.outbound", "host.listening")}
