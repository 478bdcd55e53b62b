"""Says how a device stands by the time since its last contact. Pure."""

from enum import StrEnum

from .registry import AGENT

INTERVAL_S = {AGENT: 3600}
"""How often a device of a kind contacts the server, in seconds (for agents, `exchange.content.CONTACT_S`)."""
OTHER_INTERVAL_S = 300
"""The same for kinds that are not there."""
SILENT_S = 7 * 86_400
"""After that time without a contact somebody should look at the machine."""


class Connection(StrEnum):
    """How a device stands."""

    NEVER = "never"
    """It has had no contact with the server, as a machine that was enrolled by hand."""
    SEEN = "seen"
    """Its last contact is not longer ago than one contact and a half."""
    LATE = "late"
    """It has left out a contact: it is switched off, or its network is down."""
    SILENT = "silent"
    """It has had no contact for `SILENT_S`."""


def tolerance(kind: str) -> int:
    """For how many seconds after its last contact a device of a kind counts as seen."""
    return INTERVAL_S.get(kind, OTHER_INTERVAL_S) * 3 // 2


def connection(kind: str, last_contact: int | None, now: int) -> Connection:
    """How a device stands.

    Args:
        kind: of the device.
        last_contact: seconds since 1970 UTC; None if there was none.
        now: seconds since 1970 UTC.
    """
    if last_contact is None:
        return Connection.NEVER
    ago = now - last_contact
    if ago <= tolerance(kind):
        return Connection.SEEN
    return Connection.LATE if ago <= SILENT_S else Connection.SILENT
