"""Asks the license server for the configuration of the machine's fleet and confirms it, if it has announced `configuration`.

One of the last steps of a contact, and none fails for it. What was taken in is confirmed in the same contact, and what became
of it is said again at each later one: the machine's own file may have changed since.
"""

import logging

from agentd.uplink.client import ExchangeClient
from agentd.uplink.transport import NoContact
from contracts.contact.configuration import ConfigurationReply, ConfigurationRequest
from contracts.exchange import Refused

from .fleetsettings import FleetSettings

log = logging.getLogger(__name__)


class ConfigurationSync:
    """Asks for it.

    Args:
        client: asks.
        settings: keeps it.
    """

    def __init__(self, client: ExchangeClient, settings: FleetSettings) -> None:
        self._client = client
        self._settings = settings

    @property
    def contact_interval(self) -> int | None:
        """Seconds between two contacts, as file or fleet say; None leaves it to the server."""
        return self._settings.effective.config.agent.contact_interval

    async def sync(self) -> None:
        """Asks, takes the answer in, and confirms it.

        Raises:
            HwsecError, AuditUnavailable: a request cannot be signed, or the answer not be recorded.
        """
        try:
            if await self._ask():
                await self._ask()
        except (NoContact, Refused, OSError) as error:
            log.warning("the fleet's configuration could not be taken in: %s", error)

    async def _ask(self) -> bool:
        settings = self._settings
        reply = await self._client.ask(ConfigurationReply, ConfigurationRequest, known=settings.known, result=settings.result())
        return reply.document is not None and await settings.take(reply.document)
