"""Takes over what the server has signed besides secrets: its time, its key set, the revocation list.

What must not be rolled back is committed to the sealed store; a date that only moves on is committed once a day at most.
"""

import logging

import msgspec

from agentd.audit.log import AuditLog
from agentd.base.clock import Clock
from agentd.licenses import revocations as lists
from agentd.licenses.revocations import Revocations
from agentd.licenses.validator import Engine
from agentd.secrets.installer import FRESH_S, SECTION_BINDING, SECTION_REVOCATIONS, SECTION_TRUST, SecretOps
from agentd.uplink import server_record as bindings
from agentd.uplink.server_record import Binding
from contracts.exchange import RevocationReply
from contracts.keyset import SignedKeySet

log = logging.getLogger(__name__)

COMMIT_DATE_AFTER_S = 86_400


class ServerWord:
    """What the server says counts from the moment it is committed.

    Args:
        ops: commits.
        engine: judges by it.
        clock: goes by the server's time.
        audit: logs.
        binding: to the server.
    """

    def __init__(self, ops: SecretOps, engine: Engine, clock: Clock, audit: AuditLog, binding: Binding) -> None:
        self._ops = ops
        self._engine = engine
        self._clock = clock
        self._audit = audit
        self._sealed_until = engine.revocations.next_update or 0
        self.binding = binding

    async def hear_time(self, signed: int, took_s: float) -> None:
        """Takes in the time at which the server signed a reply.

        Args:
            signed: seconds since 1970 UTC.
            took_s: seconds from question to reply; a reply that was held back is a lower bound only.
        """
        if signed > self._clock.floor or self._clock.anchor is None:
            await self._ops.hear_time(signed, fresh=took_s <= FRESH_S)

    async def take_key_set(self, found: SignedKeySet) -> None:
        """Goes by a new key set from now on. Raises as `SecretOps.keep`."""
        content = found.content
        binding = msgspec.structs.replace(
            self.binding,
            roots=content.roots,
            # The server shows its root at the end of its chain: the roots are what it is known by.
            pins=content.roots,
            key_set=content.number,
            key_set_expires=content.expires,
        )
        await self._ops.keep(
            {SECTION_TRUST: content.trust_file(), SECTION_BINDING: bindings.encode(binding)},
            "server.key_set",
            number=content.number,
            license_keys=[key.kid for key in content.license_keys],
            rotation_keys=[key.kid for key in content.rotation_keys],
            roots=list(content.roots),
        )
        self._engine.trust = content.trust()
        self.binding = binding

    async def take_revocations(self, reply: RevocationReply) -> None:
        """Goes by a new revocation list from now on.

        The list was signed for this request. Nothing is taken back by it: a license is revoked for good. What is missing on it
        has ended, or the server has lost what it knew (a backup), and then a higher number proves nothing either.

        Raises:
            HwsecError, AuditUnavailable: as `SecretOps.keep`.
        """
        found = Revocations(
            number=reply.number, issued_at=reply.issued_at, next_update=reply.next_update, revoked=frozenset(reply.revoked)
        )
        present = self._engine.revocations
        if found.number < present.number:
            log.warning("the server's revocation list has number %d, this agent has %d", found.number, present.number)
        found = lists.joined(found, present)
        if not found.replaces(present):
            return
        # The number counts revocations of all agents; what costs a write is a change for this one, or the date.
        if found.revoked != present.revoked or reply.next_update - self._sealed_until > COMMIT_DATE_AFTER_S:
            await self._ops.keep(
                {SECTION_REVOCATIONS: lists.encode(found)},
                "server.revocations",
                number=found.number,
                revoked=sorted(found.revoked)[:50],
                count=len(found.revoked),
            )
            self._sealed_until = reply.next_update
        self._engine.revocations = found
