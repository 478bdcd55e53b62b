"""When the server is contacted and when a rotation is begun. Pure: times in, times out.

Jitter spreads a fleet that was switched on in the same minute. It is drawn from the agent's id and what it is for, so that a
restart does not draw again.
"""

import hashlib

ROTATE_EARLY = (0.05, 0.15)
"""A rotation is begun when so much of the secret's time is left: between the two, by the agent's share."""
CONTACT_SPREAD = 0.2
"""Contacts come up to so much earlier than the server asked for."""
CONTACT_EVERY_S = 3600
"""Until the server says otherwise."""
FIRST_CONTACT_S = 30
"""The first contact after a start comes within so many seconds."""
RENEW_EARLY = (0.25, 0.4)
"""A certificate is renewed when so much of its time is left: between the two, by the agent's share."""


def share(agent_id: str, *what: object) -> float:
    """The agent's share for something: evenly spread over agents in [0, 1), always the same for the same words."""
    text = "\0".join((agent_id, *(str(part) for part in what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _early(bounds: tuple[float, float], drawn: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * drawn


def rotation_time(agent_id: str, version: int, valid_from: int, valid_until: int) -> int:
    """When the successor of a version is to be asked for: some time before it is due, seconds since 1970 UTC."""
    early = _early(ROTATE_EARLY, share(agent_id, "rotation", version))
    return valid_until - int((valid_until - valid_from) * early)


def renewal_time(agent_id: str, serial: int, not_before: int, not_after: int) -> int:
    """When a certificate is to be renewed, seconds since 1970 UTC."""
    early = _early(RENEW_EARLY, share(agent_id, "renewal", serial))
    return not_after - int((not_after - not_before) * early)


def contact_delay(agent_id: str, count: int, wanted_s: int) -> float:
    """Seconds until the next contact.

    Args:
        agent_id: whose.
        count: of the contacts so far: each draws anew.
        wanted_s: what the server asked for.
    """
    return wanted_s * (1 - CONTACT_SPREAD * share(agent_id, "contact", count))
