"""Learns what the license server can do beyond release 0.1.0, and tells it what this agent can do.

The server's list is fetched once in a run, when the key set has changed, and once a day. A server without it is one of 0.1.0.
Nothing that comes in its place stops a contact. What was learned stays in the sealed store: who withholds the list, or delivers
an old one, does not take back what the agent knows (docs/threat-model.md, T32).
"""

import logging

from agentd.audit.core import Core
from agentd.secrets.store import Store
from agentd.uplink.client import ExchangeClient
from agentd.uplink.transport import NoContact
from contracts.contact.capabilities import ANNOUNCE, AnnounceCapabilities, AnnounceReply, verify_capabilities
from contracts.contact.configuration import CONFIGURATION
from contracts.contact.licensesync import SYNC
from contracts.contact.seats import LEASE
from contracts.contact.updates import HARDWARE, UPDATES
from contracts.contact.usage import REPORT
from contracts.exchange import Refused
from contracts.jose import BadSignature, MalformedToken

log = logging.getLogger(__name__)

CAPABILITIES = (ANNOUNCE, SYNC, REPORT, LEASE, UPDATES, HARDWARE, CONFIGURATION)
"""What this agent can do."""
ASK_EVERY_S = 86_400.0
"""How often the list is fetched in a long run: the server may have been updated."""


class Negotiation:
    """Knows what the server can do.

    Args:
        store: keeps it.
        client: asks.
    """

    def __init__(self, core: Core, store: Store, client: ExchangeClient) -> None:
        self._core = core
        self._store = store
        self._client = client
        self._asked_at: float | None = None
        self._key_set = 0

    @property
    def known(self) -> tuple[str, ...]:
        """The capabilities of the server that this agent knows how to use."""
        return self._store.record.capabilities

    def can(self, name: str) -> bool:
        """Whether the server has announced a capability."""
        return name in self.known

    async def negotiate(self) -> None:
        """Fetches the list if it is time, and announces what this agent can do. The last step of a contact.

        Raises:
            HwsecError, AuditUnavailable: what was learned cannot be stored, or the announcement cannot be signed.
        """
        if not self._due():
            return
        now, server = self._core.clock.monotonic(), self._store.record.server
        try:
            text = await self._client.fetch_capabilities()
            names = () if text is None else verify_capabilities(text, self._store.trust).capabilities
        except (NoContact, MalformedToken, BadSignature) as error:
            # The next contact asks again: this was no answer of the server.
            log.info("the server's capabilities could not be read: %s", error)
            return
        self._asked_at, self._key_set = now, 0 if server is None else server.key_set
        await self._learn(names)
        if ANNOUNCE in names:
            await self._announce()

    def _due(self) -> bool:
        server = self._store.record.server
        if self._asked_at is None or (server is not None and server.key_set != self._key_set):
            return True
        return self._core.clock.monotonic() - self._asked_at >= ASK_EVERY_S

    async def _learn(self, names: tuple[str, ...]) -> None:
        """Adds to what is known. A list takes nothing away: it may be an old one."""
        found = tuple(sorted({*self.known, *(name for name in names if name in CAPABILITIES)}))
        if found != self.known:
            await self._store.keep("server.capabilities", {"capabilities": found}, capabilities=list(found))

    async def forget(self, name: str) -> None:
        """Takes back what was known, since the server has refused a request that used it, and signed that.

        Raises:
            HwsecError, AuditUnavailable: that cannot be stored.
        """
        found = tuple(each for each in self.known if each != name)
        await self._store.keep("server.capabilities", {"capabilities": found}, capabilities=list(found), refused=name)

    async def _announce(self) -> None:
        try:
            reply = await self._client.ask(AnnounceReply, AnnounceCapabilities, capabilities=CAPABILITIES)
        except (NoContact, Refused) as error:
            log.info("the server did not note this agent's capabilities: %s", error)
        else:
            await self._learn(reply.capabilities)
