"""Keeps the replies to requests, so that a request that comes again gets the same reply and acts once.

A reply is sealed: it may have license tokens in it. Large replies of purposes that may act again are not kept, but their
request ids are: such a request acts again as long as its challenge is fresh. What is kept has a bound for each agent here, and
one for all agents in `registry.housekeeping`.
"""

from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from contracts.exchange import RefusalCode
from server.base.refused import RequestRefused
from server.registry.cipher import Cipher
from server.registry.models.core import KeptReply

from .challenges import CHALLENGE_LIFETIME_S, CLOCK_TOLERANCE_S

KEPT_S = 48 * 3600
"""How long the replies of `LONG` are kept."""
SHORT_KEPT_S = 600
"""How long the others are kept: until the challenge in the request is stale at every server, and no longer."""
LONG = frozenset({"rotate-secret", "confirm-rotation", "renew-certificate"})
"""The purposes that change which secret or certificate the agent has."""
MADE_AGAIN = frozenset({"reissue-licenses", "revocation-list", "sync-licenses"})
"""The purposes whose replies are large: 32 new tokens are 87 kB. To answer them again changes nothing."""
MAX_KEPT = 128
"""Replies of an agent that are kept beyond `SHORT_KEPT_S`: the newest."""
MAX_FRESH = 2048
"""Replies of an agent that are kept at all. An agent that keeps to its rate does not reach it."""
assert SHORT_KEPT_S >= CHALLENGE_LIFETIME_S + 2 * CLOCK_TOLERANCE_S, "a request could act twice"


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a request.

    Attributes:
        digest: SHA-256 of the request's text, in hex.
        reply: the JWS; None if it is to be made again.
    """

    digest: str
    reply: str | None


class KeptReplies:
    """The kept replies. Every method works in the transaction of the session that it is given.

    Args:
        cipher: seals them.
    """

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    def find(self, session: Session, agent_id: str, request_id: str) -> Kept | None:
        """What is kept of the request with this id; None if there was none."""
        row = session.get(KeptReply, (agent_id, request_id))
        if row is None:
            return None
        if row.sealed is None:
            return Kept(row.digest, None)
        return Kept(row.digest, self._cipher.open(*_place(agent_id, request_id), row.sealed).decode())

    def sealed(self, agent_id: str, request_id: str, reply: str) -> bytes:
        """A reply as the registry keeps it."""
        return self._cipher.seal(*_place(agent_id, request_id), reply.encode())

    def require_room(self, session: Session, agent_id: str, now: int) -> None:
        """Returns if another reply of this agent may be kept. Forgets those that need not be kept any more.

        Args:
            session: of a writing transaction.
            agent_id: the agent.
            now: seconds since 1970 UTC.

        Raises:
            RequestRefused: it has made `MAX_FRESH` requests within `SHORT_KEPT_S`.
        """
        mine = KeptReply.agent_id == agent_id
        if (session.scalar(select(func.count()).where(mine)) or 0) < MAX_KEPT:
            return
        session.execute(delete(KeptReply).where(mine, KeptReply.kept_until < now))
        newest = select(KeptReply.kept_at).where(mine).order_by(KeptReply.kept_at.desc()).offset(MAX_KEPT - 2).limit(1)
        bound = session.scalar(newest)
        if bound is None:
            return
        old = min(bound, now - SHORT_KEPT_S - 1)
        session.execute(delete(KeptReply).where(mine, KeptReply.kept_at <= old))
        if (session.scalar(select(func.count()).where(mine)) or 0) >= MAX_FRESH:
            raise RequestRefused(RefusalCode.RATE_LIMITED, "this agent has made too many requests", SHORT_KEPT_S)

    def keep(
        self, session: Session, agent_id: str, request_id: str, digest: str, reply: str | None, now: int, kept_s: int = KEPT_S
    ) -> None:
        """Keeps a reply. The caller has looked, in the same transaction, that there is none with this id.

        Args:
            session: of a writing transaction.
            agent_id: the agent.
            request_id: of the request.
            digest: SHA-256 of the request's text, in hex.
            reply: the JWS; None to keep only that the request id was used.
            now: seconds since 1970 UTC.
            kept_s: seconds until it is forgotten.
        """
        sealed = None if reply is None else self.sealed(agent_id, request_id, reply)
        session.add(
            KeptReply(
                agent_id=agent_id, request_id=request_id, digest=digest, sealed=sealed, kept_at=now, kept_until=now + kept_s
            )
        )


def _place(agent_id: str, request_id: str) -> tuple[str, str, str]:
    return "kept_reply", f"{agent_id}/{request_id}", "sealed"
