"""Bounds what one caller may ask: rates, and the sizes and times of a request. Pure."""

import ipaddress
from dataclasses import dataclass

from common.tokenbucket import BoundedBuckets

MAX_BODY_BYTES = 64 * 1024
"""Of a request's body, as it comes over the wire."""
MAX_OPERATOR_BODY_BYTES = 1024 * 1024
"""Of a request's body on the operators' listener: a list of many licenses comes at once."""
MAX_HEAD_BYTES = 16 * 1024
"""Of a request's line and headers."""
MAX_HEADER_REQUEST_CHARS = 8000
"""Of a signed request in the header `Agent-Request`."""
REQUEST_DEADLINE_S = 15
"""From a request's first byte (or the connection's begin) to its last byte."""
HANDSHAKE_DEADLINE_S = 10
KEEP_ALIVE_S = 30
"""An idle connection is closed after this."""
MAX_CONNECTIONS = 4096
"""Connections of a listener, in all."""
MAX_ANONYMOUS = 1024
"""Of these, connections without a client certificate."""
MAX_ANONYMOUS_ADDRESS = 64
"""Connections without a client certificate, of an address (IPv6: a /64)."""
MAX_HANDSHAKES = 1024
"""TLS handshakes at once, in all."""
MAX_HANDSHAKES_ADDRESS = 64
"""TLS handshakes at once, of an address. A shop's tills share one address."""
MAX_AGENT_CONNECTIONS = 8
"""Connections of one client certificate; its agent needs two, and those that it has lost end by themselves."""
MAX_KEYS = 16_384
"""Callers for which a bucket is kept."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a bucket allows.

    Attributes:
        per_second: requests a second in the long run.
        burst: requests at once, after a pause.
    """

    per_second: float
    burst: int


AGENT_RATE = Rate(5, 60)
"""For each agent, over all endpoints and certificates. The certificates that do not count share another bucket."""
LOT_ASKED_RATE = Rate(1, 4)
"""How often a process asks the registry for more of an agent's allowance: who floods costs no more than that."""
ADDRESS_RATE = Rate(2, 40)
"""For each address (IPv6: each /64), over all requests without a client certificate. A shop's tills share one address."""
HANDSHAKE_RATE = Rate(20, 400)
"""New connections to the TLS listener, for each address."""
REFUSED_PEER_RATE = Rate(1 / 60, 3)
"""Log lines about refused connections, for each address, or each local user at the Unix socket."""
FAILED_CLAIM_RATE = Rate(1 / 60, 10)
"""Refused provisioning attempts, for each address."""
RECORDED_REFUSAL_RATE = Rate(1 / 600, 3)
"""Refused provisioning attempts in the audit, for each address; the others are counted."""
RECORDED_REFUSALS_RATE = Rate(1 / 60, 30)
"""Refused provisioning attempts in the audit, of all addresses."""


def buckets(rate: Rate, most: int = MAX_KEYS) -> BoundedBuckets:
    """A bucket for each caller, at most `most` of them."""
    return BoundedBuckets(rate.per_second, rate.burst, most)


def address_key(address: str) -> str:
    """The bucket of an address: its own, or for IPv6 that of its /64, because one host has that many addresses.

    A text that is not an address has a bucket of its own.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped is not None else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
