"""Writes the rule set of nftables that the agent's configuration asks for. Performs no IO.

Inbound is closed but for what is listed. Outbound, the link's user reaches its servers, everybody the listed resolvers and time
servers; all else is refused.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cli.doctor.layout import Destination

TABLE = "license_agent_host"
"""The one table that the rules are in: loading them again replaces it and nothing else."""
DNS_PORT, NTP_PORT, SSH_PORT = 53, 123, 22
_PLACE = re.compile(r"(tcp|udp):(?:\[([0-9A-Fa-f:.]+(?:/\d+)?)\]|([0-9./]+)):(\d{1,5})")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadRule(ValueError):
    """What was asked for cannot be written as a rule."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """One thing that may pass.

    Attributes:
        network: the other side.
        protocol: `tcp` or `udp`; empty for both.
        port: of the side that is connected to.
        why: for the comment in the rule.
        uid: whose connections; None for everybody's.
    """

    network: Network
    protocol: str
    port: int
    why: str
    uid: int | None = None

    def rule(self, side: str) -> str:
        """The rule; `side` is `saddr` or `daddr`."""
        whose = "" if self.uid is None else f"meta skuid {self.uid} "
        family = "ip" if self.network.version == 4 else "ip6"
        whole = self.network.prefixlen == self.network.max_prefixlen
        address = str(self.network.network_address) if whole else str(self.network)
        what = f"{self.protocol} dport" if self.protocol else "meta l4proto { tcp, udp } th dport"
        return f'{whose}{family} {side} {address} {what} {self.port} accept comment "{self.why}"'


def network(text: str) -> Network:
    """An address or a network; raises BadRule."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadRule(f"'{text}' is neither an IP address nor a network such as 192.0.2.0/24") from None


def allowed(text: str) -> Allowed:
    """What `PROTOCOL:ADDRESS:PORT` names; raises BadRule."""
    parts = _PLACE.fullmatch(text)
    if parts is None or not 0 < int(parts[4]) < 65536:
        raise BadRule(f"'{text}' is not PROTOCOL:ADDRESS:PORT, such as tcp:192.0.2.0/24:9100 or udp:[2001:db8::1]:514")
    return Allowed(network(parts[2] or parts[3]), parts[1], int(parts[4]), "listed")


def of_link(destinations: Iterable[Destination], addresses: Mapping[str, list[str]], uid: int) -> list[Allowed]:
    """What the link may reach.

    Args:
        destinations: of its configuration.
        addresses: of host names, in lower case.
        uid: the link's user.

    Raises:
        BadRule: a name has no address.
    """
    found: list[Allowed] = []
    for to in destinations:
        texts = [to.host] if _is_address(to.host) else addresses.get(to.host.lower(), [])
        if not texts:
            raise BadRule(f"the address of {to.host} is not known: give --address {to.host}=ADDRESS (getent ahosts {to.host})")
        found += [Allowed(network(text), "tcp", to.port, f"license agent, {to.name}", uid) for text in texts]
    if not found:
        raise BadRule("neither link.toml nor the agent names a license server: add [upstream.server] to link.toml")
    return found


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def nameservers(text: str) -> list[str]:
    """The resolvers in a text like /etc/resolv.conf that are not on this machine."""
    found = [line.split()[1].partition("%")[0] for line in text.splitlines() if re.match(r"nameserver\s+\S", line)]
    return [address for address in found if _is_address(address) and not ipaddress.ip_address(address).is_loopback]


def rule_set(outbound: Iterable[Allowed], inbound: Iterable[Allowed], source: str) -> str:
    """The whole file, for `nft -f`.

    Args:
        outbound: what may be reached.
        inbound: who may come in.
        source: the file that it was made from.
    """
    out = "".join(f"        {each.rule('daddr')}\n" for each in dict.fromkeys(outbound))
    into = "".join(f"        {each.rule('saddr')}\n" for each in dict.fromkeys(inbound))
    return f"""#!/usr/sbin/nft -f
# Network rules of this machine, written by 'license-agent-cli doctor nftables' from {source}.
# Everything that is not listed here is refused, also what other programs of this machine do.
# Try: nft --check --file FILE. Keep: put it into /etc/nftables.conf, then systemctl enable --now nftables.
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
    chain inbound {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif "lo" accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} accept
        udp sport 67 udp dport 68 accept comment "DHCP"
        udp sport 547 udp dport 546 accept comment "DHCPv6"
{into}        counter comment "dropped"
    }}
    chain forwarded {{
        type filter hook forward priority filter; policy drop;
    }}
    chain outbound {{
        type filter hook output priority filter; policy drop;
        ct state established,related accept
        oif "lo" accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report }} accept
        udp sport 68 udp dport 67 accept comment "DHCP"
        udp sport 546 udp dport 547 accept comment "DHCPv6"
{out}        limit rate 6/minute log prefix "license-agent refused: "
        counter reject with icmpx admin-prohibited comment "refused"
    }}
}}
"""
