"""Answers `count_usage`. In memory, and in a mapped file: no disk, no TPM, no network on the way.

The caller has checked the rate of requests.
"""

from collections.abc import Collection

from agentd.audit.core import Core
from agentd.audit.log import actor
from agentd.licenses.holdings import Holdings
from agentd.licenses.usage import Counted, Counting, Usage
from common.tokenbucket import Buckets
from ipc.answers import LicenseReason
from ipc.bounds import COUNTS_BURST, COUNTS_PER_S, MAX_COUNTERS, PROTOCOL_VERSION
from ipc.clientwire import METER_FEATURE
from ipc.errors import ErrorCode
from ipc.messages import CountUsage, encode_error, encode_reply
from ipc.peer import Peer

_REFUSALS = {
    Counting.OTHER: (ErrorCode.REFUSED, "the id of this count was used for another meter or amount; make a new one"),
    Counting.TOO_MUCH: (ErrorCode.REFUSED, "this meter cannot count that much more"),
    Counting.TOO_MANY: (ErrorCode.RATE_LIMITED, "too many counts; repeat this one later with the same id"),
    Counting.NO_ROOM: (
        ErrorCode.UNAVAILABLE,
        f"{MAX_COUNTERS} meters have counts that the license server does not know; repeat this one after the next contact",
    ),
}
_NO_FILE = "usage cannot be counted: the agent's file usage.counts cannot be used, and the agent's journal says why"


class Metering:
    """Counts for the licenses of this machine.

    Args:
        core: whose log and clock.
        holdings: the licenses.
        usage: the counters; None if their file cannot be used.
    """

    def __init__(self, core: Core, holdings: Holdings, usage: Usage | None) -> None:
        self._audit = core.audit
        self._counters = core.counters
        self._holdings = holdings
        self._usage = usage
        self._rates = Buckets(COUNTS_PER_S, COUNTS_BURST)

    def tidy(self, mono: float) -> None:
        """Frees memory that is no longer needed."""
        self._rates.forget_full(mono)

    def count(self, request: CountUsage, peer: Peer, now: int, mono: float, allowed: Collection[str] | None) -> bytes:
        """The reply frame to `count_usage`.

        Args:
            request: what to count.
            peer: who counts.
            now: seconds since 1970 UTC.
            mono: monotonic seconds.
            allowed: the products that the peer may know of; None for all licenses.
        """
        usage = self._usage
        if usage is None:
            return self._refuse(request, peer, ErrorCode.UNAVAILABLE, _NO_FILE)
        found = usage.known(request.meter, request.amount, request.count_id)
        if found is not None:
            return self._answer(request, peer, found)
        held = self._holdings.at(now).choose(METER_FEATURE + request.meter, None, allowed)
        reason = LicenseReason.NO_LICENSE if held is None else held.reason
        if held is None or reason is not LicenseReason.OK:
            self._log(request, peer, reason.value, None)
            return _reply(request, None, reason)
        if not self._rates.take(peer.uid, mono):
            text = f"more than {COUNTS_PER_S} counts a second; repeat this one later with the same id, or count larger amounts"
            return self._refuse(request, peer, ErrorCode.RATE_LIMITED, text)
        return self._answer(request, peer, usage.count(held.license_id, request.meter, request.amount, request.count_id))

    def _answer(self, request: CountUsage, peer: Peer, found: Counted) -> bytes:
        if found.how in _REFUSALS:
            return self._refuse(request, peer, *_REFUSALS[found.how])
        self._log(request, peer, "repeated" if found.how is Counting.REPEATED else "ok", found.license_id)
        return _reply(request, found, LicenseReason.OK)

    def _refuse(self, request: CountUsage, peer: Peer, code: ErrorCode, text: str) -> bytes:
        self._counters.refused_requests += 1
        self._log(request, peer, code.name.lower(), None)
        return encode_error(code, text, request.id)

    def _log(self, request: CountUsage, peer: Peer, outcome: str, license_id: str | None) -> None:
        # The meter is not part of what counts as the same: a caller can name any.
        self._audit.record_within_budget(
            peer.uid,
            ("usage", peer.uid, outcome, license_id),
            "usage.counted",
            outcome,
            lambda: {"actor": actor(peer), "meter": request.meter, "license": license_id},
            important=False,
        )


def _reply(request: CountUsage, found: Counted | None, reason: LicenseReason) -> bytes:
    return encode_reply(
        {
            "v": PROTOCOL_VERSION,
            "id": request.id,
            "count_id": request.count_id,
            "counted": found is not None,
            "repeated": found is not None and found.how is Counting.REPEATED,
            "reason": reason.value,
            "license": None if found is None else found.license_id,
        }
    )
