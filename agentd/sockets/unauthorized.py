"""Connections by users who are not allowed: counted, logged and alerted, each within limits of its own."""

import logging
from collections.abc import Callable

from agentd.audit.log import AuditLog
from agentd.base.ratelimit import Buckets
from agentd.telemetry.metrics import Counters
from ipc.peer import Peer

log = logging.getLogger(__name__)

ALERT_EVERY_S, ALERTS_AT_ONCE = 60.0, 3
"""Of each user who is not allowed, so many attempts are alerted; the others are counted."""
ANSWERS_TO_STRANGERS_PER_S = 10


def actor(peer: Peer) -> dict[str, int]:
    """The peer, as the audit log names it."""
    return {"uid": peer.uid, "gid": peer.gid, "pid": peer.pid}


class Strangers:
    """Deals with connections by users who are not allowed: counts, logs, alerts, each within limits of its own.

    The alert does not share a budget with anything that an allowed user can use up.

    Args:
        socket: `pos` or `admin`.
        audit: logs.
        counters: of this run.
        monotonic: seconds.
    """

    def __init__(self, socket: str, audit: AuditLog, counters: Counters, monotonic: Callable[[], float]) -> None:
        self._socket = socket
        self._audit = audit
        self._counters = counters
        self._monotonic = monotonic
        self._answers = Buckets(ANSWERS_TO_STRANGERS_PER_S, ANSWERS_TO_STRANGERS_PER_S * 5)
        self._alerts = Buckets(1 / ALERT_EVERY_S, ALERTS_AT_ONCE)

    def refused(self, peer: Peer) -> bool:
        """Takes note of an attempt; returns whether the peer gets an answer."""
        self._counters.unauthorized += 1
        now = self._monotonic()
        if self._alerts.take(peer.uid, now):
            log.critical(
                "ALERT unauthorized access: uid %d gid %d pid %d tried the %s socket",
                peer.uid, peer.gid, peer.pid, self._socket,
            )  # fmt: skip
            self._audit.record("access.denied", "unauthorized", socket=self._socket, actor=actor(peer))
        else:
            self._audit.count(
                ("unauthorized", self._socket, peer.uid),
                "access.denied",
                "unauthorized",
                lambda: {"socket": self._socket, "actor": actor(peer)},
            )
        return self._answers.take(peer.uid, now)

    def tidy(self) -> None:
        """Gives back memory that is no longer needed; called every minute."""
        now = self._monotonic()
        self._answers.forget_full(now)
        self._alerts.forget_full(now)
