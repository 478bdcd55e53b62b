"""Remembers which nonces were used. Performs no IO.

Each UID has two generations of nonces; a generation lasts at least one window, so a nonce stays used for at least one. A full
generation refuses; it never forgets a nonce to make room, since an old request could then be repeated.
"""

from enum import Enum

from ipc.bounds import NONCE_WINDOW_S, NONCES_PER_UID


class NonceOutcome(Enum):
    """What became of a nonce."""

    FRESH = 1
    REPLAYED = 2
    FULL = 3


# Looking a member up in its enumeration takes longer than all the rest of `use`.
_FRESH, _REPLAYED, _FULL = NonceOutcome


class _Generations:
    __slots__ = ("began", "current", "previous")

    def __init__(self, now: float) -> None:
        self.began = now
        self.current: set[bytes] = set()
        self.previous: set[bytes] = set()


class NonceWindow:
    """The nonces of all UIDs, for this run of the agent.

    Args:
        window: seconds that a generation lasts.
        per_uid: nonces that one UID may use in a generation.
    """

    def __init__(self, window: float = NONCE_WINDOW_S, per_uid: int = NONCES_PER_UID) -> None:
        self._window = window
        self.per_uid = per_uid
        self._users: dict[int, _Generations] = {}

    def use(self, uid: int, nonce: bytes, now: float) -> NonceOutcome:
        """Uses a nonce, if it is fresh.

        Args:
            uid: the peer.
            nonce: 16 bytes.
            now: monotonic seconds.
        """
        user = self._users.get(uid)
        if user is None:
            user = self._users[uid] = _Generations(now)
        elif now - user.began >= self._window:
            # After two idle windows the previous generation is stale as well.
            user.previous = user.current if now - user.began < 2 * self._window else set()
            user.current = set()
            user.began = now
        current = user.current
        if nonce in current or nonce in user.previous:
            return _REPLAYED
        if len(current) >= self.per_uid:
            return _FULL
        current.add(nonce)
        return _FRESH

    def forget_idle(self, now: float) -> None:
        """Frees the memory of UIDs whose nonces are all too old to matter."""
        for uid in [uid for uid, user in self._users.items() if now - user.began >= 2 * self._window]:
            del self._users[uid]
