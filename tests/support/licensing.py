"""What acts of operators do to a license, in a registry."""

import json

from sqlalchemy import select

from server.licensing import changes
from server.registry.models import Agent, License
from tests.support.serverside import ServerSide


def suspend(server: ServerSide, jti: str, now: int, *, on: bool = True) -> None:
    """What suspending or reinstating a license does to the registry."""
    with server.database.write() as session:
        owner = session.scalar(select(License.agent_id).where(License.jti == jti))
        assert owner is not None
        session.get(Agent, owner, with_for_update=True)
        session.get_one(License, jti).suspended_at = now if on else None
        changes.changed(session, owner, now, [jti])


def transfer(server: ServerSide, jti: str, to: str, now: int) -> None:
    """What moving a license to another agent does to the registry."""
    with server.database.write() as session:
        row = session.get_one(License, jti)
        owner, claims = row.agent_id, json.loads(row.claims)
        for name in sorted({owner, to}):
            session.get(Agent, name, with_for_update=True)
        row.agent_id, row.claims = to, json.dumps({**claims, "aud": to})
        changes.left(session, owner, jti, claims["exp"], now)
        changes.changed(session, to, now, [jti])
