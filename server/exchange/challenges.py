"""Makes and checks challenges, which prove that a request is new. Pure.

The server stores no challenge: its HMAC over the time and the client certificate's fingerprint proves that this server made it.
"""

import hashlib
import hmac

from contracts.jose import MalformedToken, b64decode, b64encode

CHALLENGE_LIFETIME_S = 300
CLOCK_TOLERANCE_S = 60
"""How far the clocks of two servers behind one address may differ."""
_CONTEXT = b"license-server/challenge/1\0"
_RANDOM_BYTES = 16
_BODY_BYTES = 8 + _RANDOM_BYTES


def new_challenge(key: bytes, fingerprint: str, now: int, random: bytes) -> str:
    """Makes a challenge for the holder of a client certificate.

    Args:
        key: 32 bytes that only the servers know.
        fingerprint: SHA-256 of the certificate, in hex.
        now: seconds since 1970 UTC.
        random: 16 bytes.
    """
    body = now.to_bytes(8, "big") + random
    return b64encode(body + _tag(key, fingerprint, body))


def is_fresh(challenge: str, key: bytes, fingerprint: str, now: int) -> bool:
    """Whether this server made the challenge, for that certificate, less than `CHALLENGE_LIFETIME_S` seconds ago."""
    made_at = made_when(challenge, key, fingerprint)
    return made_at is not None and -CLOCK_TOLERANCE_S <= now - made_at < CHALLENGE_LIFETIME_S


def made_when(challenge: str, key: bytes, fingerprint: str) -> int | None:
    """When this server made the challenge, seconds since 1970 UTC; None if it has not made it for that certificate."""
    try:
        data = b64decode(challenge)
    except MalformedToken:
        return None
    body, tag = data[:_BODY_BYTES], data[_BODY_BYTES:]
    if len(body) != _BODY_BYTES or not hmac.compare_digest(tag, _tag(key, fingerprint, body)):
        return None
    return int.from_bytes(body[:8], "big")


def _tag(key: bytes, fingerprint: str, body: bytes) -> bytes:
    return hmac.digest(key, _CONTEXT + fingerprint.encode() + b"\0" + body, hashlib.sha256)
