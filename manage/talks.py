"""Keeps the conversations with the agent: the challenge and session of each, and whose it is. Nothing here performs IO.

A conversation belongs to the TLS certificate that began it. A challenge's id is good once, for as long as the agent's challenge
is; each answer of the agent gives the conversation a new one. A conversation without either is closed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipc.bounds import ADMIN_CHALLENGE_S, ADMIN_SESSION_S

from .agent import Conversation

MAX_TALKS = 12
"""Conversations in all. The agent allows its user 16 connections; one more serves what needs no signature."""
MAX_TALKS_EACH = 4
"""Conversations of one TLS certificate."""


class TooMany(Exception):
    """No further conversation can begin; the text says whose they are."""


@dataclass(eq=False, slots=True)
class Talk:
    """One conversation.

    Attributes:
        owner: SHA-256 of the TLS certificate, hex.
        agent: the connection.
        given: what the agent gave with its challenge and what stays the same: `agent_id`, `boot_id`.
        challenge_id: under which its challenge can be answered; empty while none can.
        challenge_ends: monotonic seconds.
        session_id: under which it can be read; empty without a session.
        session_ends: monotonic seconds.
    """

    owner: str
    agent: Conversation
    given: dict[str, Any]
    challenge_id: str = ""
    challenge_ends: float = 0.0
    session_id: str = ""
    session_ends: float = 0.0

    def over(self, now: float) -> bool:
        """Whether neither its challenge nor its session can be used any more."""
        return (not self.challenge_id or now >= self.challenge_ends) and (not self.session_id or now >= self.session_ends)


class Talks:
    """The conversations.

    Args:
        new_id: makes an id that nobody can guess.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._talks: list[Talk] = []
        self._busy: set[Talk] = set()

    def __len__(self) -> int:
        return len(self._talks)

    def make_room(self, owner: str, now: float) -> None:
        """Makes room for one more of this owner, at the cost of a conversation that only waits for a signature.

        Where the owner has as many as they may, it is the oldest of their own; where all together have as many as they may, the
        oldest of the owner who has the most.

        Raises:
            TooMany: there is no room.
        """
        self.tidy(now)
        if self._count(owner) >= MAX_TALKS_EACH:
            own = self._idle(owner)
            if own is None:
                raise TooMany(f"this certificate has {MAX_TALKS_EACH} sessions and acts under way, which is the limit")
            self.end(own)
        if len(self._talks) >= MAX_TALKS:
            owners = sorted(dict.fromkeys(talk.owner for talk in self._talks), key=self._count, reverse=True)
            idle = next((talk for each in owners if (talk := self._idle(each)) is not None), None)
            if idle is None:
                raise TooMany(f"{MAX_TALKS} sessions and acts are under way, which is the limit")
            self.end(idle)

    def _count(self, owner: str) -> int:
        return sum(talk.owner == owner for talk in self._talks)

    def _idle(self, owner: str) -> Talk | None:
        """The oldest conversation of an owner that only waits for a signature."""
        own = (talk for talk in self._talks if talk.owner == owner)
        return next((talk for talk in own if not talk.session_id and talk not in self._busy), None)

    def begin(self, owner: str, agent: Conversation, given: dict[str, Any], now: float) -> Talk:
        """Keeps a conversation whose first challenge has been given."""
        talk = Talk(owner, agent, given)
        self._talks.append(talk)
        self.challenge_given(talk, now)
        return talk

    def challenge_given(self, talk: Talk, now: float) -> None:
        """Makes the agent's newest challenge one that can be answered."""
        talk.challenge_id, talk.challenge_ends = self._new_id(), now + ADMIN_CHALLENGE_S

    def session_begun(self, talk: Talk, seconds: float, now: float) -> None:
        """Lets the conversation be read under a session's id."""
        talk.session_id, talk.session_ends = self._new_id(), now + min(seconds, ADMIN_SESSION_S)

    def take(self, challenge_id: str, owner: str, now: float) -> Talk | None:
        """The conversation whose challenge this is, which is used up by this; None if this owner has none such."""
        talk = self._find(lambda talk: talk.challenge_id == challenge_id, owner) if challenge_id else None
        if talk is None or now >= talk.challenge_ends:
            return None
        talk.challenge_id = ""
        self._busy.add(talk)
        return talk

    def done(self, talk: Talk) -> None:
        """An act of a conversation has ended, well or not."""
        self._busy.discard(talk)

    def session(self, session_id: str, owner: str, now: float) -> Talk | None:
        """The conversation with this session; None if this owner has none such."""
        talk = self._find(lambda talk: talk.session_id == session_id, owner) if session_id else None
        return None if talk is None or now >= talk.session_ends else talk

    def end(self, talk: Talk) -> None:
        """Ends a conversation."""
        talk.agent.close()
        talk.challenge_id = talk.session_id = ""
        self._busy.discard(talk)
        if talk in self._talks:
            self._talks.remove(talk)

    def tidy(self, now: float) -> None:
        """Ends what is over."""
        for talk in [talk for talk in self._talks if talk.over(now) and talk not in self._busy]:
            self.end(talk)

    def end_all(self) -> None:
        """Ends everything."""
        for talk in list(self._talks):
            self.end(talk)

    def _find(self, matches: Callable[[Talk], bool], owner: str) -> Talk | None:
        return next((talk for talk in self._talks if talk.owner == owner and matches(talk)), None)
