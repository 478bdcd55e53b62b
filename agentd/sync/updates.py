"""Applies what the license server has signed besides secrets: its time, its key set, the revocation list.

What must not be rolled back is committed to the sealed store; a date that only moves on is committed once a day at most.
"""

import logging

import msgspec

from agentd.audit.core import Core
from agentd.licenses.validator import Validator
from agentd.secrets.record import ServerRecord, SettledKeySet
from agentd.secrets.revocations import Revocations, joined
from agentd.secrets.store import Store
from agentd.secrets.trusted_time import FRESH_S, TrustedTime
from contracts.exchange import RevocationReply
from contracts.keyset import SignedKeySet
from contracts.trust import joined_trust

log = logging.getLogger(__name__)

COMMIT_DATE_AFTER_S = 86_400
MAX_ROOTS = 4


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
        await self._time.hear(signed, fresh=took_s <= FRESH_S)
        clock = self._core.clock
        # At once, since licenses may be judged before the next second.
        self._validator.ahead = clock.latest() - clock.now()

    @property
    def settled(self) -> bool:
        """Whether what the server dates may replace something for good."""
        return self._time.settled

    def confirm_in(self) -> float | None:
        """As `TrustedTime.confirm_in`."""
        return self._time.confirm_in()

    async def apply_key_set(self, found: SignedKeySet) -> None:
        """Goes by a new key set. While the server's time is not taken, the keys of the one before it count as well.

        Raises:
            HwsecError, AuditUnavailable: as `Store.keep`.
        """
        content, trust_file, roots, settled = found.content, found.content.trust_file(), found.content.roots, None
        if not self._time.settled:
            settled = SettledKeySet(trust_file=trust_file, roots=roots)
            trust_file = joined_trust(trust_file, self._store.record.trust_file)
            roots = (*roots, *(root for root in self.server.roots if root not in roots))[:MAX_ROOTS]
        server = msgspec.structs.replace(
            self.server,
            roots=roots,
            # The server shows its root at the end of its chain, so the roots are what the agent knows it by.
            pins=roots,
            key_set=content.number,
            key_set_expires=content.expires,
        )
        await self._store.keep(
            "server.key_set",
            {"trust_file": trust_file, "server": server, "settled": settled},
            number=content.number,
            license_keys=[key.kid for key in content.license_keys],
            rotation_keys=[key.kid for key in content.rotation_keys],
            roots=list(content.roots),
        )

    async def settle(self) -> None:
        """Gives up the keys of the key set before the newest; called once the server's time is taken.

        Raises:
            HwsecError, AuditUnavailable: as `Store.keep`.
        """
        settled = self._store.record.settled
        if settled is None:
            return
        server = msgspec.structs.replace(self.server, roots=settled.roots, pins=settled.roots)
        changes = {"trust_file": settled.trust_file, "server": server, "settled": None}
        await self._store.keep("server.key_set_settled", changes, number=server.key_set)

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
        misdated = present.from_later_than(self._core.clock.ceiling()) and found.number >= present.number
        if not found.replaces(present) and not misdated:
            return
        # A server of release 0.1.0 counts the revocations of all agents; worth a write is a change for this one, or the date.
        if found.revoked != present.revoked or misdated or reply.next_update - self._committed_until > COMMIT_DATE_AFTER_S:
            await self._store.keep(
                "server.revocations",
                {"revocations": found},
                number=found.number,
                revoked=sorted(found.revoked)[:50],
                count=len(found.revoked),
            )
            self._committed_until = reply.next_update
        self._validator.revocations = found
