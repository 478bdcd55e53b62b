"""Signs the agent's requests to the license server and reads the replies. The transport that carries them is not trusted."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from agentd.audit.core import Core
from agentd.secrets.store import Store
from agentd.secrets.trusted_time import utc
from contracts.exchange import (
    RefusalCode,
    Refused,
    RenewCertificate,
    Reply,
    Request,
    purpose_of,
    request_input,
    with_signature,
)

from .certificates import ClientCertificates
from .replies import capabilities_in, challenge_in, key_set_in, signed_reply
from .transport import API, NoContact, Transport

SIGN_DEADLINE_S = 10.0
CHALLENGE_KEPT_S = 120.0
"""How long a challenge is used; the server accepts it for longer."""

R = TypeVar("R", bound=Reply)


class ExchangeClient:
    """Asks the license server on behalf of one agent.

    Args:
        store: says whose signatures count.
        transport: carries requests.
        certificates: the client certificate in use. A server whose clock is past its end lets this agent do nothing but renew
            it; one that signs a later time all the same has a wrong clock.
        random: gives that many random bytes.
    """

    def __init__(
        self,
        core: Core,
        store: Store,
        transport: Transport,
        certificates: ClientCertificates,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._core = core
        self._store = store
        self._transport = transport
        self._certificates = certificates
        self._random = random
        self._challenge: tuple[str, float] | None = None

    @property
    def has_challenge(self) -> bool:
        """Whether the server has given a challenge on this connection."""
        return self._challenge is not None

    def forget_challenge(self) -> None:
        """Forgets the challenge; called for each connection, since it belongs to one client certificate."""
        self._challenge = None

    async def ask(self, kind: type[R], make: type[Request], **fields: Any) -> R:
        """Asks once; with another challenge once more, if the server no longer accepts the one that was used.

        Args:
            kind: the reply that this request has.
            make: the request.
            fields: its members, besides those that every request has.

        Raises:
            NoContact: no reply that counts came.
            Refused: the server refuses.
            HwsecError: the hardware does not sign.
        """
        try:
            return await self._ask(kind, make, fields)
        except Refused as refused:
            if refused.refusal.code is not RefusalCode.STALE_CHALLENGE:
                raise
        self._challenge = None
        return await self._ask(kind, make, fields)

    async def _ask(self, kind: type[R], make: type[Request], fields: Mapping[str, Any]) -> R:
        core = self._core
        request = make(
            agent_id=core.agent_id,
            request_id=self._random(16).hex(),
            challenge=await self._fresh_challenge(),
            timestamp=core.clock.now(),
            **fields,
        )
        purpose, signed = purpose_of(request), request_input(request)
        signature = await core.hardware.run(lambda connection: connection.backend.sign(signed), SIGN_DEADLINE_S)
        body = json.dumps({"request": with_signature(signed, signature)}).encode()
        response = await self._transport("POST", f"{API}/{purpose}", body)
        reply = signed_reply(response, kind, core.agent_id, request.request_id, self._store.trust, purpose)
        if reply.issued_at > self._certificates.ends and make is not RenewCertificate:
            raise NoContact(
                f"the server's clock is wrong: it says {utc(reply.issued_at)}, and this agent's certificate has ended then"
            )
        return reply

    async def _fresh_challenge(self) -> str:
        now = self._core.clock.monotonic()
        if self._challenge is None or now - self._challenge[1] >= CHALLENGE_KEPT_S:
            self._challenge = (challenge_in(await self._transport("POST", f"{API}/challenge", b"{}")), now)
        return self._challenge[0]

    async def fetch_key_set(self, root: str | None = None) -> str:
        """The present key set as the server sends it; the caller verifies it.

        Args:
            root: fetch the newest one that the root with this pin has signed.

        Raises:
            NoContact: it did not come.
        """
        query = "" if root is None else f"?root={root}"
        return key_set_in(await self._transport("GET", f"{API}/key-set{query}", b""))

    async def fetch_capabilities(self) -> str | None:
        """The list of what the server can do, as the server sends it; the caller verifies it. None if it has no such list.

        Raises:
            NoContact: it did not come.
        """
        return capabilities_in(await self._transport("GET", f"{API}/capabilities", b""))
