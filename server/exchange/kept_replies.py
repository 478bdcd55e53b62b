"""Keeps the replies to requests, so that a request that comes again gets the same reply and acts once."""

from sqlalchemy import delete
from sqlalchemy.orm import Session

from server.registry.models import KeptReply

KEPT_S = 48 * 3600
"""How long a reply is kept."""
_SWEEP_EVERY = 200


class KeptReplies:
    """The kept replies. Every `_SWEEP_EVERY` replies, expired ones are deleted."""

    def __init__(self) -> None:
        self._count = 0

    def find(self, session: Session, agent_id: str, request_id: str) -> tuple[str, str] | None:
        """The digest of the request with this id, and its reply; None if there is none."""
        row = session.get(KeptReply, (agent_id, request_id))
        return None if row is None else (row.digest, row.reply)

    def keep(self, session: Session, agent_id: str, request_id: str, digest: str, reply: str, now: int) -> None:
        """Keeps a reply. The caller has looked, in the same transaction, that there is none with this id."""
        row = KeptReply(agent_id=agent_id, request_id=request_id, digest=digest, reply=reply, kept_until=now + KEPT_S)
        session.add(row)
        self._count += 1
        if self._count % _SWEEP_EVERY == 1:
            session.execute(delete(KeptReply).where(KeptReply.kept_until < now))
