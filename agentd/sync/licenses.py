"""Learns from the license server which licenses this machine has, and which of them are suspended or taken away.

Only where the server has announced `sync-licenses`. A contact without changes asks nothing here: the number of the newest
change comes with the status. The number that counts is the lower one of two: of the license inventory, which may be lost with
its file, and of the sealed store, which nobody can change. Both move on after everything up to them is stored, so what was cut
off is asked for again.
"""

import logging
from dataclasses import dataclass, field, replace

from agentd.audit.core import Core
from agentd.base.errors import Refused
from agentd.licenses.validator import Validator
from agentd.secrets.store import Store
from agentd.secrets.withheld import Withheld, applied
from agentd.uplink.client import ExchangeClient
from agentd.uplink.transport import NotTheServer
from contracts.contact.licensesync import LicenseChange, Standing, SyncLicenses, SyncReply

log = logging.getLogger(__name__)

ACTOR = {"process": "contact"}
MAX_PAGES = 32
"""Pages that one contact asks for: an agent may make 60 requests at once. The next contact goes on."""


@dataclass(slots=True)
class _Run:
    """Pages that belong together.

    Attributes:
        known: the number that they were asked with.
        number: of the first page.
        after: where the next page begins.
        changes: what is suspended or removed, and what was and is active again.
        delivered: tokens that were kept.
        refused: tokens that were not.
    """

    known: int
    number: int | None = None
    after: str = ""
    changes: list[LicenseChange] = field(default_factory=list)
    delivered: int = 0
    refused: int = 0


class LicenseSync:
    """Keeps the licenses of this machine as the server has them.

    Args:
        store: seals what is suspended or removed.
        validator: opens tokens, and has the license inventory.
        client: asks.
    """

    def __init__(self, core: Core, store: Store, validator: Validator, client: ExchangeClient) -> None:
        self._core = core
        self._store = store
        self._validator = validator
        self._inventory = validator.inventory
        self._client = client
        self._unfinished: _Run | None = None

    @property
    def number(self) -> int:
        """Up to which change the agent knows its licenses; 0 before the first."""
        return min(self._inventory.synced, self._store.record.withheld.number)

    @property
    def withheld(self) -> Withheld:
        """The licenses that the server has suspended or taken away."""
        return self._validator.withheld

    @property
    def held(self) -> int:
        """How many licenses the server says belong to this machine."""
        return len(self._inventory.held())

    async def sync(self, secret_version: int) -> None:
        """Asks for what has changed, and applies it.

        Args:
            secret_version: the newest one, which the server issues licenses with.

        Raises:
            NoContact, contracts.exchange.Refused: a page did not come. What came before is asked for again.
            HwsecError, AuditUnavailable, OSError: it cannot be stored; likewise.
        """
        run, self._unfinished = self._unfinished, None
        if run is None or run.known != self.number:
            run = _Run(self.number)
        for _ in range(MAX_PAGES):
            reply = await self._client.ask(
                SyncReply, SyncLicenses, license_number=run.known, secret_version=secret_version, after=run.after
            )
            self._take(run, reply)
            if reply.after is None:
                await self._finish(run)
                return
            if reply.after == run.after:
                raise NotTheServer("malformed response: the next page of licenses is the same one")
            run.after = reply.after
        self._unfinished = run

    def _take(self, run: _Run, reply: SyncReply) -> None:
        # What changes between two pages has a higher number than the first one, and is asked for at the next contact.
        run.number = reply.license_number if run.number is None else run.number
        now, withheld = self._core.clock.now(), self._store.record.withheld.names()
        given_back = self._store.record.withheld.given_back
        for change in reply.changes:
            if change.license in given_back:
                # The server has not heard of it yet. It never comes back (`seats`).
                continue
            if change.standing is not Standing.ACTIVE or change.license in withheld:
                run.changes.append(change)
            if change.standing is Standing.REMOVED:
                self._inventory.release(change.license)
            if change.standing is Standing.ACTIVE and change.token is not None:
                self._deliver(run, change, change.token, now)

    def _deliver(self, run: _Run, change: LicenseChange, token: str, now: int) -> None:
        try:
            kept = self._validator.deliver(change.license, token, change.expires, now)
        except Refused as error:
            run.refused += 1
            self._core.audit.record("license.delivered", "refused", actor=ACTOR, license=change.license, text=str(error))
            return
        run.delivered += kept
        self._core.audit.record("license.delivered", "ok" if kept else "no_room", actor=ACTOR, license=change.license)

    async def _finish(self, run: _Run) -> None:
        number = run.known if run.number is None else run.number
        present = self._store.record.withheld
        found = applied(present, run.changes, number, self._core.clock.floor)
        self._inventory.synced = number
        await self._inventory.save()
        counts = {"delivered": run.delivered, "suspended": len(found.suspended), "removed": len(found.removed)}
        if found.same(present):
            # The number alone is not worth a write: after a restart the agent would ask again for what it has.
            self._store.note(replace(self._store.record, withheld=found))
            self._core.audit.record("licenses.synced", "ok", number=number, **counts)
        else:
            await self._store.keep("licenses.synced", {"withheld": found}, number=number, **counts)
        self._validator.withheld = found
        if run.refused:
            log.warning("%d of the server's license tokens are not acceptable", run.refused)
