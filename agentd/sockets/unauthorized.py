"""Counts, logs and alerts connections by users who are not on the allow-list, each within limits of its own."""

from collections.abc import Callable

from agentd.audit.log import AuditLog, actor
from agentd.base.alerts import UNAUTHORIZED
from agentd.base.counters import Counters
from common.tokenbucket import Buckets
from ipc.peer import Peer

ALERT_EVERY_S, ALERTS_AT_ONCE = 60.0, 3
"""How many attempts of each user raise an alert; the others are counted."""
ANSWERS_PER_S = 10


class UnauthorizedPeers:
    """The unauthorized peers of one socket.

    The alert does not share a budget with anything that an allowed user can use up.

    Args:
        socket: `pos` or `admin`.
        monotonic: seconds.
    """

    def __init__(self, socket: str, audit: AuditLog, counters: Counters, monotonic: Callable[[], float]) -> None:
        self._socket = socket
        self._audit = audit
        self._counters = counters
        self._monotonic = monotonic
        self._answers = Buckets(ANSWERS_PER_S, ANSWERS_PER_S * 5)
        self._alerts = Buckets(1 / ALERT_EVERY_S, ALERTS_AT_ONCE)

    def refused(self, peer: Peer) -> bool:
        """Records an attempt; returns whether the peer gets an answer."""
        self._counters.unauthorized += 1
        now = self._monotonic()
        if self._alerts.take(peer.uid, now):
            who = f"uid {peer.uid} gid {peer.gid} pid {peer.pid}"
            text = f"unauthorized access: {who} tried the {self._socket} socket"
            self._audit.raise_alert(UNAUTHORIZED, text, "unauthorized", socket=self._socket, actor=actor(peer))
        else:
            self._audit.count(
                ("unauthorized", self._socket, peer.uid),
                UNAUTHORIZED.event,
                "unauthorized",
                lambda: {"socket": self._socket, "actor": actor(peer)},
            )
        return self._answers.take(peer.uid, now)

    def skipped(self, peer: Peer, times: int) -> None:
        """Records attempts that were closed at once, because there were more of them in a second than the pace allows."""
        self._counters.unauthorized += times
        self._audit.count(
            ("unauthorized", self._socket, peer.uid),
            UNAUTHORIZED.event,
            "unauthorized",
            lambda: {"socket": self._socket, "actor": actor(peer)},
            times,
        )

    def tidy(self) -> None:
        """Frees memory that is no longer needed; called every minute."""
        now = self._monotonic()
        self._answers.forget_full(now)
        self._alerts.forget_full(now)
