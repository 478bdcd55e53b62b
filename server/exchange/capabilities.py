"""Says what this server can do beyond release 0.1.0. Pure.

What agents announce is noted for operators, and no reply depends on it: a reply has a new member only if its own request shows
that the agent knows it. So an agent that was set back to an older release is never answered in a form that it refuses.
"""

from contracts.contact.capabilities import ANNOUNCE, Capabilities
from contracts.contact.configuration import CONFIGURATION
from contracts.contact.licensesync import SYNC
from contracts.contact.seats import LEASE
from contracts.contact.updates import HARDWARE, UPDATES
from contracts.contact.usage import REPORT
from server.keys.keyring import Keyring

CAPABILITIES = (ANNOUNCE, SYNC, REPORT, LEASE, UPDATES, HARDWARE, CONFIGURATION)
"""What this server can do."""


def signed_list(keyring: Keyring, now: int) -> str:
    """The server's list: a JWS.

    Args:
        keyring: signs it.
        now: seconds since 1970 UTC.

    Raises:
        ClockNotTrusted: nothing must be signed now.
    """
    return keyring.sign_capabilities(Capabilities(issued_at=now, capabilities=CAPABILITIES))
