"""Decides what a response says of the device that asked, for the monitoring of its fleets. Performs no IO."""

from contracts.exchange import ConfirmRotation, RefusalCode, RotateSecret, purpose_of
from server.fleet.monitoring.contacts import Contacts, Failure
from server.web.callers import Scope
from server.web.middleware import CALLER, Caller, Note

_ROTATIONS = frozenset({purpose_of(RotateSecret), purpose_of(ConfirmRotation)})
_PASSED = frozenset({RefusalCode.STALE_CHALLENGE.value})
"""Refusals after which an agent asks for another challenge and goes on: nothing is wrong with it."""
_ELSEWHERE = frozenset({RefusalCode.AGENT_REVOKED.value, RefusalCode.UNKNOWN_AGENT.value, RefusalCode.RATE_LIMITED.value})
"""Refusals that say nothing of a fleet: of who is none of its devices any more, or who only shows an old certificate of one."""


def note_agent(contacts: Contacts, scope: Scope, note: Note, endpoint: str, status: int, seconds: float) -> None:
    """Notes a response of the agents' listener, if the agent has identified itself by a certificate that counts.

    Args:
        contacts: of this process.
        scope: of the request.
        note: what was noted of the response.
        endpoint: its last part of the path.
        status: of HTTP.
        seconds: from the request's head to the response.
    """
    caller: Caller | None = scope["extensions"].get(CALLER)
    peer = None if caller is None else caller.peer
    # Where nobody has looked, the certificate may be one that was revoked; with 5xx the server itself has failed.
    if peer is None or not peer.agent_id or status in (401, 429) or note.code in _ELSEWHERE:
        return
    if not note.judged and status < 500:
        return
    contacts.note(peer.agent_id, seconds, failure_of(endpoint, status, note.code))


def failure_of(endpoint: str, status: int, code: str | None) -> Failure:
    """At what a device has failed by a response.

    Args:
        endpoint: the last part of the path.
        status: of HTTP.
        code: of a refusal; None for a success.
    """
    if status < 400 or code in _PASSED:
        return Failure.NONE
    return Failure.REFUSED | (Failure.ROTATION if endpoint in _ROTATIONS else Failure.NONE)


def note_ddi(contacts: Contacts, device_id: str, status: int, seconds: float) -> None:
    """Notes a response to a device that speaks DDI and has identified itself.

    Args:
        contacts: of this process.
        device_id: whose request it was.
        status: of HTTP; 404, 410 and 429 are ordinary: what it asks for has ended, or it asks too often.
        seconds: from the request's head to the response; 0 for a download, which takes as long as its network.
    """
    contacts.note(device_id, seconds, Failure.REFUSED if status >= 400 and status not in (404, 410, 429) else Failure.NONE)
