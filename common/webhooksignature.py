"""Signs the body of a webhook request, as its receiver verifies it. Pure.

    t=1800000000,v1=HEX[,v1=HEX]

`t` is the time of this attempt, in seconds since 1970 UTC. Each `v1` is the HMAC-SHA256 of `t`, a colon and the body under one
key; there are two while a key is being replaced. A receiver accepts if one of them is right and `t` is recent. License server
and agent sign alike, each in a header of its own.
"""

import hashlib
import hmac
from collections.abc import Sequence

REPLAY_WINDOW_S = 300
"""How old a request should be at most for its receiver."""


def signature(body: bytes, at: int, key: bytes | bytearray | memoryview) -> str:
    """One `v1`: 64 hex digits.

    Args:
        body: of the request.
        at: seconds since 1970 UTC.
        key: the key as people copy it, all of its characters; no copy of it is made.
    """
    return hmac.digest(key, f"{at}:".encode() + body, hashlib.sha256).hex()


def header_value(at: int, signatures: Sequence[str]) -> str:
    """The value of the header.

    Args:
        at: seconds since 1970 UTC.
        signatures: by `signature`, that under the present key first.
    """
    return ",".join([f"t={at}", *(f"v1={each}" for each in signatures)])


def verify(header: str, body: bytes, key: str, now: int) -> bool:
    """Whether a request is from who has the key, and recent: what a receiver does.

    Args:
        header: the value of the header.
        body: of the request, as it came.
        key: the key.
        now: seconds since 1970 UTC.
    """
    parts = [part.partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    if len(times) != 1 or not times[0].isascii() or not times[0].isdigit() or abs(now - int(times[0])) > REPLAY_WINDOW_S:
        return False
    wanted = hmac.digest(key.encode(), f"{times[0]}:".encode() + body, hashlib.sha256).hex()
    return any(hmac.compare_digest(value.encode(), wanted.encode()) for name, _, value in parts if name == "v1")
