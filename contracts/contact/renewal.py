"""Decides when an agent renews its client certificate. Pure. The server computes it too, to tell who is late.

A certificate is renewed some time before it ends, and each agent adds a part of the stagger, by its id and the certificate. So
agents that were enrolled in one hour, or whose fleet got another policy in one hour, are spread over the whole stagger.
"""

import hashlib
from dataclasses import dataclass

DAY_S = 86_400
RENEW_EARLY = (0.25, 0.4)
"""Without a policy, a certificate is renewed when this share of its time is left: between the two, by the agent's share."""
MOST_LEFT = 0.9
"""Whatever a policy says, a tenth of a certificate's time passes before it is renewed: not each contact renews it."""
CONTACTS_LEFT = 2
"""Whatever a policy says, so many contacts come before the end: one of them may fail."""
CONTACT_S = 3600
"""Between two contacts, where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class RenewalPolicy:
    """How long before its end a certificate is renewed.

    Attributes:
        days_before: the latest time, days before the end; None for a quarter of the certificate's time.
        stagger_days: over so many days before that agents are spread; None for 15 % of the certificate's time.
        contact_s: longest time between two contacts, seconds.
    """

    days_before: int | None = None
    stagger_days: int | None = None
    contact_s: int = CONTACT_S


@dataclass(frozen=True, slots=True)
class Window:
    """When agents of one policy renew a certificate, each at a time of its own; seconds since 1970 UTC."""

    first: int
    last: int


def share(agent_id: str, *what: object) -> float:
    """The agent's jitter for a purpose: evenly spread over agents in [0, 1), always the same for the same words."""
    text = "\0".join((agent_id, *(str(part) for part in what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def window(policy: RenewalPolicy, not_before: int, not_after: int) -> Window:
    """When a certificate is renewed under a policy.

    The bounds hold the window as a whole: where a policy asks for too early or too late a time, the stagger stays as wide as
    the certificate's time allows. A fleet that renews in one minute is worse than one that renews a day sooner.

    Args:
        policy: what counts.
        not_before: when the certificate begins, seconds since 1970 UTC.
        not_after: when it ends.
    """
    length = not_after - not_before
    most = length * MOST_LEFT
    least = min(CONTACTS_LEFT * policy.contact_s, most / 2)
    late, early = (length * part for part in RENEW_EARLY)
    stagger = early - late if policy.stagger_days is None else policy.stagger_days * DAY_S
    stagger = min(stagger, most - least)
    wanted = late if policy.days_before is None else policy.days_before * DAY_S
    left = min(max(wanted, least), most - stagger)
    return Window(not_after - int(left + stagger), not_after - int(left))


def renewal_time(policy: RenewalPolicy, agent_id: str, serial: int, not_before: int, not_after: int) -> int:
    """When an agent renews a certificate, seconds since 1970 UTC.

    Args:
        policy: what counts for the agent.
        agent_id: the agent.
        serial: the certificate's number; its lowest 32 bits count.
        not_before: when it begins, seconds since 1970 UTC.
        not_after: when it ends.
    """
    found = window(policy, not_before, not_after)
    return found.last - int((found.last - found.first) * share(agent_id, "renewal", serial & 0xFFFFFFFF))
