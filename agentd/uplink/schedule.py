"""Decides when the agent contacts the license server and renews its certificate. Pure: times in, times out.

Jitter spreads a fleet that was switched on in the same minute. It is derived from the agent's id and its purpose, so a restart
does not draw again.
"""

import hashlib

CONTACT_SPREAD = 0.2
"""Contacts come up to this share earlier than the server asked for."""
CONTACT_EVERY_S = 3600
"""Until the server says otherwise."""
FIRST_CONTACT_S = 30
"""The first contact comes within this many seconds of a start."""
RENEW_EARLY = (0.25, 0.4)
"""A certificate is renewed when this share of its time is left: between the two, by the agent's jitter."""


def share(agent_id: str, *what: object) -> float:
    """The agent's jitter for a purpose: evenly spread over agents in [0, 1), always the same for the same words."""
    text = "\0".join((agent_id, *(str(part) for part in what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def early(bounds: tuple[float, float], drawn: float) -> float:
    """The share of a period that is left when something starts early, between the two bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * drawn


def renewal_time(agent_id: str, serial: int, not_before: int, not_after: int) -> int:
    """When the agent renews a certificate, seconds since 1970 UTC."""
    left = early(RENEW_EARLY, share(agent_id, "renewal", serial))
    return not_after - int((not_after - not_before) * left)


def contact_delay(agent_id: str, count: int, wanted_s: int) -> float:
    """Seconds until the next contact.

    Args:
        agent_id: whose.
        count: contacts so far; each has a jitter of its own.
        wanted_s: what the server asked for.
    """
    return wanted_s * (1 - CONTACT_SPREAD * share(agent_id, "contact", count))
