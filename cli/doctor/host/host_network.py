"""Checks of the host's network: what gets in, what gets out, who listens."""

import ipaddress
import json
from dataclasses import dataclass
from typing import Any

from cli.doctor.machine import CannotTell, Machine
from cli.doctor.verdict import Check, Judgment, fail, note, unknown, warn

from .ruleset import IPV4, IPV6, Side, side_of

_MAKE_RULES = "license-agent-cli doctor nftables writes the rules; see the guide 'Close the network of the machine'"
_FAMILIES = {IPV4: "IPv4", IPV6: "IPv6"}


def _rules(machine: Machine) -> dict[str, Any]:
    if machine.uid != 0:
        raise CannotTell("only root may read the rules of nftables", machine.ask_for_root())
    done = machine.program("nft", "--json", "list", "ruleset")
    if done.status != 0:
        raise CannotTell(f"nft gives no answer: {done.stderr.strip()}")
    # Rules of the former iptables are in the kernel beside those of nftables, and nft does not show them.
    for file in ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"):
        if machine.text_or(file).strip():
            raise CannotTell(
                "rules of the former iptables are loaded, which nft does not show",
                "move them to nftables: iptables-legacy-save",
            )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _has_ipv6(machine: Machine) -> bool:
    return bool(machine.text_or("/proc/net/if_inet6").strip())


@dataclass(frozen=True, slots=True)
class Filter:
    """What is done with packets of one direction, and the families that this machine uses."""

    direction: str
    side: Side
    families: tuple[str, ...]


def _inbound(machine: Machine) -> Filter:
    return Filter("inbound", side_of(_rules(machine), "input"), (IPV4, IPV6) if _has_ipv6(machine) else (IPV4,))


def _outbound(machine: Machine) -> Filter:
    return Filter("outbound", side_of(_rules(machine), "output"), (IPV4, IPV6) if _has_ipv6(machine) else (IPV4,))


def _judge_filter(found: Filter) -> Judgment:
    open_ = [family for family in found.families if family not in found.side.refuses]
    if open_:
        names = " and ".join(_FAMILIES[family] for family in open_)
        return [fail(f"{found.direction} {names} is open: no chain of nftables refuses what is not listed", _MAKE_RULES)]
    judged: Judgment = []
    for rule in found.side.open:
        if rule.lists and found.direction == "inbound":
            continue  # a port that is open to everybody by name is listed
        where = "from any address" if found.direction == "inbound" else "to any address"
        cause = f"a rule of nftables accepts {rule.what} {where} ({rule.chain}, handle {rule.handle})"
        fix = f"name the addresses, or: nft delete rule {rule.chain} handle {rule.handle}"
        judged.append(
            warn(cause, fix) if rule.certain else unknown(f"{cause}, unless iptables has more conditions", "iptables-save")
        )
    return judged


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that waits for others.

    Attributes:
        protocol: `tcp` or `udp`.
        address: that it is bound to.
        port: likewise.
        user: whose it is.
    """

    protocol: str
    address: str
    port: int
    user: str


@dataclass(frozen=True, slots=True)
class Listening:
    """Who listens, and what the rules let through; None where they could not be read."""

    sockets: tuple[Listener, ...]
    inbound: Side | None


_LISTENS = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}


def listeners(machine: Machine) -> list[Listener]:
    """Who listens at an address that others can reach, by /proc/net."""
    found = []
    for file, state in _LISTENS.items():
        for line in machine.text_or(f"/proc/net/{file}").splitlines()[1:]:
            parts = line.split()
            if len(parts) < 8 or parts[3] != state:
                continue
            raw, _, port = parts[1].partition(":")
            # Words of four bytes in the machine's order, which is little-endian wherever Debian has the package.
            data = b"".join(bytes.fromhex(raw[at : at + 8])[::-1] for at in range(0, len(raw), 8))
            address = ipaddress.ip_address(data)
            mapped = getattr(address, "ipv4_mapped", None)
            if not (mapped or address).is_loopback:
                found.append(Listener(file[:3], str(address), int(port, 16), machine.user_name(int(parts[7]))))
    return found


def _listening(machine: Machine) -> Listening:
    sockets = tuple(listeners(machine))
    try:
        inbound = side_of(_rules(machine), "input")
    except CannotTell:
        if sockets:
            raise
        inbound = None
    return Listening(sockets, inbound)


_SSH = 22


def _judge_listening(found: Listening) -> Judgment:
    judged: Judgment = []
    closed = 0
    for socket in sorted(set(found.sockets), key=lambda each: (each.protocol, each.port, each.address)):
        family = IPV6 if ":" in socket.address else IPV4
        # A socket of IPv6 that is bound to all addresses takes connections of IPv4 too.
        families = {IPV4, IPV6} if socket.address == "::" else {family}
        side = found.inbound or Side()
        if families <= side.refuses:
            closed += (socket.protocol, socket.port) not in side.ports
            continue
        if socket.port == _SSH and socket.protocol == "tcp":
            continue  # host.inbound says that it is open to everybody
        judged.append(
            warn(
                f"{socket.protocol} port {socket.port} of user {socket.user} is open to others at {socket.address}",
                f"stop it (ss -lnptu 'sport = :{socket.port}'), bind it to 127.0.0.1, or close it by nftables",
            )
        )
    if not judged:
        judged.append(
            note(
                "nobody listens"
                if not found.sockets
                else f"{len(set(found.sockets))} sockets, {closed} of them closed by the rules"
            )
        )
    return judged


CHECKS: tuple[Check[Any], ...] = (
    Check("host.inbound", "Inbound is closed but for what is listed", "`nft --json list ruleset`", _inbound, _judge_filter),
    Check(
        "host.outbound", "Outbound is open to listed destinations only", "`nft --json list ruleset`", _outbound, _judge_filter
    ),
    Check(
        "host.listening",
        "Nothing listens that others can reach without being listed",
        "`/proc/net/tcp`, `udp`, and nftables",
        _listening,
        _judge_listening,
    ),
)
