"""Decides which users may serve the agent's socket: root (systemd made the socket), the agent's user, the client's own user."""

import contextlib
import os
import pwd

from ..peer import OVERFLOW_ID

AGENT_USER = "license-agent"
DEFAULT_POS_SOCKET = "/run/license-agent/pos.sock"
DEFAULT_ADMIN_SOCKET = "/run/license-agent/admin.sock"


def trusted_uids(agent_uid: int | None = None) -> frozenset[int]:
    """The UIDs that may serve the socket and own its directory.

    A process of the client's own user can do anything in the client's name already, so trusting it adds nothing; it is
    how the local stand runs without root.

    Args:
        agent_uid: the agent's UID where its user is not named `license-agent`. 65534 means all users that the user
            namespace of this process does not map, and for nobody where it maps all.
    """
    # A process that has no number itself must not trust all others that have none.
    uids = {0, os.geteuid()} - {OVERFLOW_ID}
    if agent_uid is not None:
        uids.add(agent_uid)
    else:
        with contextlib.suppress(KeyError):
            uids.add(pwd.getpwnam(AGENT_USER).pw_uid)
    return frozenset(uids)
