"""Tells an agent which of its licenses have changed since a number (`changes`), and makes their tokens.

The server remembers nothing of what it has sent an agent: the agent says its number. So a lost reply, a second machine with the
same identity and an agent that begins again all get what they lack.
"""

import json
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.claims import check_claims
from contracts.contact.licensesync import MAX_CHANGES_PER_REPLY, LicenseChange, Standing
from contracts.exchange import RefusalCode
from server.agents.registry import ACTIVE
from server.base.refused import RequestRefused
from server.licensing.secrets.secrets import Secrets
from server.licensing.states.changes import BASE, present
from server.registry import audit
from server.registry.database import present_number
from server.registry.models.core import Agent, FormerLicense, License

from .licenses import Licenses

_PRESENT, _FORMER = "present:", "former:"
"""What the place begins with where a page ends: among the licenses that the agent has, or among those that it had."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the changes, as in `contracts.contact.licensesync.SyncReply`."""

    number: int
    changes: tuple[LicenseChange, ...]
    after: str | None


class Deliveries:
    """Tells agents what has changed. Every method works in the transaction of the session that it is given.

    Args:
        licenses: makes tokens.
        secrets: tokens are encrypted with them.
    """

    def __init__(self, licenses: Licenses, secrets: Secrets) -> None:
        self._licenses = licenses
        self._secrets = secrets

    def number(self, session: Session, agent_id: str) -> int:
        """The number of the newest change of an agent's licenses."""
        return present(session, session.get_one(Agent, agent_id))

    def page(self, session: Session, agent_id: str, known: int, version: int, after: str, now: int) -> Page:
        """What has changed since a number.

        Args:
            session: of a writing transaction.
            agent_id: the agent.
            known: the number up to which it knows its licenses.
            version: the newest secret version that it holds.
            after: of the page before; empty for the first one.
            now: seconds since 1970 UTC.

        Raises:
            RequestRefused: `after` is not of a page, or the server does not know that version.
        """
        agent = session.get_one(Agent, agent_id)
        if self._secrets.open(session, agent_id, version) is None:
            raise RequestRefused(
                RefusalCode.UNKNOWN_VERSION, f"the server has no secret version {version} that licenses can be issued under"
            )
        number = present(session, agent)
        if agent.status != ACTIVE:
            # It gets no tokens; once it is active, everything still has to be sent to it.
            return Page(known, (), None)
        # A number of before a restore, or one that the restored registry has lost: what was sent then is not known here.
        since = 0 if known < present_number(session, BASE) or known > number else known
        changes: list[LicenseChange] = []
        room = MAX_CHANGES_PER_REPLY
        if not after.startswith(_FORMER):
            if not after.startswith(_PRESENT) and after:
                raise RequestRefused(RefusalCode.BAD_REQUEST, "'after' is not where a page of this server ends")
            rows = self._present(session, agent_id, since, after.removeprefix(_PRESENT))
            changes = self._as_they_are(session, rows, version, number, now)
            room -= len(rows)
            if not room:
                return Page(number, tuple(changes), _PRESENT + rows[-1].jti)
        former = self._former(session, agent_id, since, after.removeprefix(_FORMER) if after.startswith(_FORMER) else "", room)
        changes += _as_removed(session, agent_id, former, now)
        return Page(number, tuple(changes), _FORMER + former[-1].jti if len(former) == room else None)

    def _present(self, session: Session, agent_id: str, since: int, after: str) -> list[License]:
        """The next licenses that the agent has and that have changed, locked."""
        query = select(License).where(License.agent_id == agent_id, License.jti > after)
        if since:
            query = query.where(License.change_number > since)
        # Locked in the order of their ids, so that two callers cannot wait for each other.
        return list(session.scalars(query.order_by(License.jti).limit(MAX_CHANGES_PER_REPLY).with_for_update()))

    def _as_they_are(self, session: Session, rows: list[License], version: int, number: int, now: int) -> list[LicenseChange]:
        changes: list[LicenseChange] = []
        tokens = 0
        for row in rows:
            expires = check_claims(json.loads(row.claims)).exp
            # The revocation list speaks of revoked ones; what has ended is refused in any case.
            if row.revoked_at is not None or expires <= now:
                continue
            if row.suspended_at is not None:
                changes.append(LicenseChange(license=row.jti, standing=Standing.SUSPENDED, expires=expires))
                continue
            token = self._licenses.renewed_token(session, row, version, now)
            changes.append(LicenseChange(license=row.jti, standing=Standing.ACTIVE, expires=expires, token=token))
            tokens += 1
        if tokens:
            agent = rows[0].agent_id
            audit.record(session, f"agent {agent}", "license.delivered", "ok", now, count=tokens, number=number)
        return changes

    def _former(self, session: Session, agent_id: str, since: int, after: str, room: int) -> list[FormerLicense]:
        mine = FormerLicense.agent_id == agent_id, FormerLicense.change_number > since, FormerLicense.jti > after
        return list(session.scalars(select(FormerLicense).where(*mine).order_by(FormerLicense.jti).limit(room)))


def _as_removed(session: Session, agent_id: str, rows: list[FormerLicense], now: int) -> list[LicenseChange]:
    """Those that the agent has lost and not got back."""
    mine = License.agent_id == agent_id, License.jti.in_([row.jti for row in rows])
    back = set(session.scalars(select(License.jti).where(*mine)))
    return [
        LicenseChange(license=row.jti, standing=Standing.REMOVED, expires=row.expires_at)
        for row in rows
        if row.expires_at > now and row.jti not in back
    ]
