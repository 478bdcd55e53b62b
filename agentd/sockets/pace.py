"""Limits how often each user, and each process of theirs, may connect. Nothing here performs IO.

What exceeds the limit is closed at once and counted in an integer. That is all it costs, so that somebody who only connects and
closes keeps nobody waiting.
"""

from common.tokenbucket import BoundedBuckets, Buckets
from ipc.bounds import MIN_CONNECTS_PER_S, UNAUTHORIZED_CONNECTS_PER_S
from ipc.peer import Peer

PROCESSES = 1024
"""Processes whose pace is known; one that is forgotten begins with a full bucket, within the limit of its user."""


class ConnectPace:
    """The pace of everyone who connects to one socket.

    Attributes:
        skipped: connections beyond the limit that have not been reported yet, by who they are without the process.
    """

    def __init__(self) -> None:
        self._users = Buckets(MIN_CONNECTS_PER_S, MIN_CONNECTS_PER_S)
        self._processes = BoundedBuckets(MIN_CONNECTS_PER_S / 2, MIN_CONNECTS_PER_S / 2, PROCESSES)
        self._unauthorized = Buckets(UNAUTHORIZED_CONNECTS_PER_S, UNAUTHORIZED_CONNECTS_PER_S)
        self.skipped: dict[tuple[int, int, bool], int] = {}

    def take(self, peer: Peer, *, admitted: bool, per_s: int, now: float) -> bool:
        """Whether a connection is within the limits; if not, it is counted.

        Args:
            peer: who connects.
            admitted: whether they are on the allow-list.
            per_s: connections that an admitted user may make each second; a process of theirs, half as many.
            now: monotonic seconds.
        """
        if admitted:
            users, processes, rate = self._users, self._processes, max(per_s, MIN_CONNECTS_PER_S)
            if users.rate != rate:
                users.rate = users.burst = rate
                processes.rate = processes.burst = rate / 2
            # The process first: one that floods must not use up what its user's other processes need.
            within = processes.take((peer.uid, peer.pid), now) and users.take(peer.uid, now)
        else:
            within = self._unauthorized.take(peer.uid, now)
        if not within:
            key = (peer.uid, peer.gid, admitted)
            self.skipped[key] = self.skipped.get(key, 0) + 1
        return within

    def tidy(self, now: float) -> None:
        """Frees memory that is no longer needed."""
        self._users.forget_full(now)
        self._processes.forget_full(now)
        self._unauthorized.forget_full(now)
