"""Judges where a webhook may go: to public addresses, and to those networks that an administrator lists. Pure.

A webhook must not reach the sender's own machine, its neighbors, or the metadata service of a cloud because somebody may name
its destination, or answers for it in the DNS. The judgment is made of the address that a connection goes to, not of the name: a
name may change.
"""

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is given out for the internet (RFC 4291, 2.4). What leads to an IPv4 address is judged as that one."""
_NOT_PUBLIC: tuple[Network, ...] = (
    ipaddress.IPv4Network("168.63.129.16/32"),
    ipaddress.IPv4Network("192.88.99.0/24"),
    ipaddress.IPv6Network("::ffff:0:0:0/96"),
    ipaddress.IPv6Network("3fff::/20"),
)
"""What Python takes for public: a cloud's own server for its machines, relays that are no more (RFC 7526), IPv4 addresses
behind a translator (RFC 2765), and addresses for documents (RFC 9637)."""
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks of the settings. Raises ValueError: one of them is not a network."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def allowed(address: str, listed: Sequence[Network]) -> bool:
    """Whether a connection to this address may be made.

    Args:
        address: an IP address in text form, as the resolver returned it.
        listed: networks that are allowed although they are not public.
    """
    try:
        found: Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = _inner(found)
    if any(each in network for each in (found, inner) for network in listed if network.version == each.version):
        return True
    if any(each in network for each in (found, inner) for network in _NOT_PUBLIC if network.version == each.version):
        return False
    if inner.version == 6 and inner not in _UNICAST:
        return False
    return all(each.is_global and not each.is_multicast for each in (found, inner))


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address leads to, or itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if any(address in network for network in _NAT64) or address in ipaddress.IPv6Network("::/96"):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
