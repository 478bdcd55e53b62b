"""Remembers newer tokens that could not be stored, and decides when storing is tried again. Nothing here performs IO.

The rule: after a failure the newer token is validated straight away, without asking for it again. Storing it is tried again
once the obstacle looks different, or after a pause that begins with a minute and doubles up to an hour; and at once when the
agent holds a still newer token.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0
MAX_REMEMBERED = 64
"""Tokens of so many licenses are remembered; beyond that the oldest is forgotten, and costs a try at each validation."""


@dataclass(slots=True)
class Unstored:
    """A newer token that could not be stored.

    Attributes:
        newer: the token.
        why: what went wrong, for people.
        obstacle: what `Store.obstacle` said.
        pause: seconds from the last try to the next.
        again: when the next try is due.
    """

    newer: str
    why: str
    obstacle: Hashable
    pause: float
    again: float


class UnstoredTokens:
    """The newer tokens of one client that could not be stored.

    Args:
        clock: seconds, on any clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_token: dict[Hashable, Unstored] = {}

    def find(self, key: Hashable) -> Unstored | None:
        """What is remembered of a token."""
        return self._by_token.get(key)

    def due(self, known: Unstored, obstacle: Hashable) -> bool:
        """Whether storing should be tried again."""
        return obstacle != known.obstacle or self._clock() >= known.again

    def failed(self, key: Hashable, newer: str, why: str, obstacle: Hashable) -> None:
        """Notes that storing failed."""
        known = self._by_token.pop(key, None)
        again = known is not None and known.newer == newer
        pause = min(known.pause * 2, LONGEST_PAUSE_S) if known is not None and again else FIRST_PAUSE_S
        if len(self._by_token) >= MAX_REMEMBERED:
            del self._by_token[next(iter(self._by_token))]
        self._by_token[key] = Unstored(newer, why, obstacle, pause, self._clock() + pause)

    def forget(self, key: Hashable) -> None:
        """The newer token was stored, or is of no use."""
        self._by_token.pop(key, None)
