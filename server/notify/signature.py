"""Signs the body of a webhook request, as its receiver verifies it. Pure.

    License-Server-Signature: t=1800000000,v1=HEX[,v1=HEX]

`t` is the time of this attempt, in seconds since 1970 UTC. Each `v1` is the HMAC-SHA256 of `t`, a colon and the body under one
secret; there are two while a secret is being replaced. A receiver accepts if one of them is right and `t` is recent.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence

HEADER = "License-Server-Signature"
SECRET_PREFIX = "lswh_"
"""Begins a secret in the form that people copy, so that scanners of source code find one that was committed."""
SECRET_BYTES = 32
REPLAY_WINDOW_S = 300
"""How old a request should be at most for its receiver."""


def new_secret() -> str:
    """A new secret, as people copy it. All of its characters are the key of the HMAC."""
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def signed(body: bytes, at: int, keys: Sequence[str]) -> str:
    """The value of the header.

    Args:
        body: of the request.
        at: seconds since 1970 UTC.
        keys: the secrets, the present one first.
    """
    text = f"{at}:".encode() + body
    return ",".join([f"t={at}", *(f"v1={hmac.digest(key.encode(), text, hashlib.sha256).hex()}" for key in keys)])


def verify(header: str, body: bytes, key: str, now: int) -> bool:
    """Whether a request is from who has the secret, and recent: what a receiver does.

    Args:
        header: the value of the header.
        body: of the request, as it came.
        key: the secret.
        now: seconds since 1970 UTC.
    """
    parts = [part.partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    if len(times) != 1 or not times[0].isascii() or not times[0].isdigit() or abs(now - int(times[0])) > REPLAY_WINDOW_S:
        return False
    wanted = hmac.digest(key.encode(), f"{times[0]}:".encode() + body, hashlib.sha256).hex()
    return any(hmac.compare_digest(value.encode(), wanted.encode()) for name, _, value in parts if name == "v1")
