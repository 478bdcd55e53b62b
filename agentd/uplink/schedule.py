"""Decides when the agent contacts the license server. Pure: times in, times out.

`contracts.contact.renewal` decides when it renews its certificate, because the server computes that too.

Jitter spreads a fleet that was switched on in the same minute. It is derived from the agent's id and its purpose, so a restart
does not draw again.
"""

from agentd.base.config.config import Config
from contracts.contact.renewal import RenewalPolicy, share

CONTACT_SPREAD = 0.2
"""Contacts come up to this share earlier than the server asked for."""
CONTACT_EVERY_S = 3600
"""Until the server says otherwise."""
FIRST_CONTACT_S = 30
"""The first contact comes within this many seconds of a start."""


def early(bounds: tuple[float, float], drawn: float) -> float:
    """The share of a period that is left when something starts early, between the two bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * drawn


def contact_delay(agent_id: str, count: int, wanted_s: int) -> float:
    """Seconds until the next contact.

    Args:
        agent_id: whose.
        count: contacts so far; each has a jitter of its own.
        wanted_s: what the server asked for.
    """
    return wanted_s * (1 - CONTACT_SPREAD * share(agent_id, "contact", count))


def renewal_policy(config: Config) -> RenewalPolicy:
    """How long before its end the client certificate is renewed.

    Args:
        config: that counts: the file's with what a fleet sets.
    """
    found = config.certificates
    return RenewalPolicy(found.renew_days_before, found.stagger_days, config.agent.contact_interval or CONTACT_EVERY_S)
