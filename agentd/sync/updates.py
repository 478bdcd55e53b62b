"""Applies what the license server has signed besides secrets: its time, its key set, the revocation list.

What must not be rolled back is committed to the sealed store; a date that only moves on is committed once a day at most.
"""

import logging

import msgspec

from agentd.audit.core import Core
from agentd.licenses.validator import Validator
from agentd.secrets.record import ServerRecord
from agentd.secrets.revocations import Revocations, joined
from agentd.secrets.store import Store
from agentd.secrets.trusted_time import FRESH_S, TrustedTime
from contracts.exchange import RevocationReply
from contracts.keyset import SignedKeySet

log = logging.getLogger(__name__)

COMMIT_DATE_AFTER_S = 86_400


class SignedUpdates:
    """What the server says counts from the moment it is committed.

    Args:
        store: commits.
        time: takes in server-signed times.
        validator: goes by the revocation list.
    """

    def __init__(self, core: Core, store: Store, time: TrustedTime, validator: Validator) -> None:
        self._core = core
        self._store = store
        self._time = time
        self._validator = validator
        self._committed_until = store.record.revocations.next_update or 0

    @property
    def server(self) -> ServerRecord:
        """The license server as the agent knows it now."""
        server = self._store.record.server
        if server is None:
            raise RuntimeError("an agent that contacts a server must have one in its store")
        return server

    @property
    def revocations(self) -> Revocations:
        """The list that verdicts go by."""
        return self._validator.revocations

    async def hear_time(self, signed: int, took_s: float) -> None:
        """Takes in the time at which the server signed a reply. Raises HwsecError.

        Args:
            signed: seconds since 1970 UTC.
            took_s: seconds from request to reply; a reply that was held back is a lower bound only.
        """
        if self._time.moves_on(signed):
            await self._time.hear(signed, fresh=took_s <= FRESH_S)

    async def apply_key_set(self, found: SignedKeySet) -> None:
        """Goes by a new key set. Raises as `Store.keep`."""
        content = found.content
        server = msgspec.structs.replace(
            self.server,
            roots=content.roots,
            # The server shows its root at the end of its chain, so the roots are what the agent knows it by.
            pins=content.roots,
            key_set=content.number,
            key_set_expires=content.expires,
        )
        await self._store.keep(
            "server.key_set",
            {"trust_file": content.trust_file(), "server": server},
            number=content.number,
            license_keys=[key.kid for key in content.license_keys],
            rotation_keys=[key.kid for key in content.rotation_keys],
            roots=list(content.roots),
        )

    async def apply_revocations(self, reply: RevocationReply) -> None:
        """Goes by a new revocation list, which was signed for this request.

        No list takes a revocation back: a license is revoked for good. What is missing on a list has ended, or the server has
        lost what it knew (a restored backup), and then a higher number proves nothing either.

        Raises:
            HwsecError, AuditUnavailable: as `Store.keep`.
        """
        found = Revocations(
            number=reply.number, issued_at=reply.issued_at, next_update=reply.next_update, revoked=frozenset(reply.revoked)
        )
        present = self.revocations
        if found.number < present.number:
            log.warning("the server's revocation list has number %d, this agent has %d", found.number, present.number)
        found = joined(found, present)
        if not found.replaces(present):
            return
        # The number counts revocations of all agents; worth a write is a change for this one, or the date.
        if found.revoked != present.revoked or reply.next_update - self._committed_until > COMMIT_DATE_AFTER_S:
            await self._store.keep(
                "server.revocations",
                {"revocations": found},
                number=found.number,
                revoked=sorted(found.revoked)[:50],
                count=len(found.revoked),
            )
            self._committed_until = reply.next_update
        self._validator.revocations = found
