"""How much one caller may ask: token buckets, and the bounds of requests. Nothing here performs IO; time is a parameter."""

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass

MAX_BODY_BYTES = 64 * 1024
"""Of a request's body, as it comes over the wire."""
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
MAX_KEYS = 16_384
"""Callers for which a bucket is kept; the one that was silent longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a bucket allows.

    Attributes:
        per_second: requests a second in the long run.
        burst: requests at once, after a silence.
    """

    per_second: float
    burst: int


AGENT_RATE = Rate(5, 60)
"""For each client certificate, over all endpoints."""
ADDRESS_RATE = Rate(2, 40)
"""For each address (IPv6: each /64), over all requests without a client certificate. A shop's tills share one address."""
FAILED_CLAIM_RATE = Rate(1 / 60, 10)
"""Refused claims, for each address."""


class Buckets:
    """One token bucket for each key.

    Args:
        rate: what each of them allows.
        most: for how many keys one is kept.
    """

    def __init__(self, rate: Rate, most: int = MAX_KEYS) -> None:
        self._rate = rate
        self._most = most
        self._filled: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float) -> int:
        """Takes a token.

        Args:
            key: whose bucket.
            now: seconds of a clock that never goes back.

        Returns:
            0 if there was one, else the seconds until there will be one, rounded up.
        """
        wait = self.wait(key, now)
        if not wait:
            tokens = self._tokens(key, now) - 1
            self._filled[key] = (tokens, now)
            self._filled.move_to_end(key)
            if len(self._filled) > self._most:
                self._filled.popitem(last=False)
        return wait

    def wait(self, key: str, now: float) -> int:
        """As `take`, without taking."""
        missing = 1 - self._tokens(key, now)
        return math.ceil(missing / self._rate.per_second) if missing > 0 else 0

    def _tokens(self, key: str, now: float) -> float:
        tokens, then = self._filled.get(key, (float(self._rate.burst), now))
        return min(float(self._rate.burst), tokens + max(0.0, now - then) * self._rate.per_second)


def address_key(address: str) -> str:
    """The key of an address: itself, for IPv6 its /64, since one host has that many addresses.

    A text that is no address is a key of its own.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped is not None else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
