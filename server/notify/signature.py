"""Signs what the server's webhooks send, in the header `License-Server-Signature`, and makes their secrets. Pure."""

import secrets
from collections.abc import Sequence

from common.webhooksignature import header_value, signature

HEADER = "License-Server-Signature"
SECRET_PREFIX = "lswh_"
"""Begins a secret in the form that people copy, so that scanners of source code find one that was committed."""
SECRET_BYTES = 32


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
    return header_value(at, [signature(body, at, key.encode()) for key in keys])
