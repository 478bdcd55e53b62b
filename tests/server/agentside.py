"""The agent's side of the exchange, for tests of the server: signs requests, verifies replies with the agent's own code."""

import json
import os
from typing import Any

import msgspec
from joserfc import jws
from joserfc.jwk import ECKey

from contracts.exchange import REQUEST_TYPE, Request, verify_reply
from contracts.trust import Trust
from server.exchange.service import Exchange
from server.keys.jose import new_signing_key, public_jwk
from server.web.peers import Peer


def answered(exchange: Exchange, purpose: str, peer: Peer | None, text: str, now: int) -> tuple[int, str]:
    """HTTP status and body of the response to a request."""
    response = exchange.handle(purpose, peer, text, now)
    return response.status, response.body()


def new_id() -> str:
    return os.urandom(16).hex()


class AgentSide:
    """An agent with an identity key."""

    def __init__(self, agent_id: str, trust: Trust | None = None) -> None:
        self.agent_id = agent_id
        self.trust = trust
        self.key = new_signing_key()

    @property
    def public(self) -> dict[str, str]:
        return {name: value for name, value in public_jwk(self.key).items() if name != "kid"}

    def request(self, kind: type[Request], challenge: str, **fields: Any) -> Request:
        head = {"agent_id": self.agent_id, "request_id": new_id(), "challenge": challenge, "timestamp": 1_800_000_000}
        return kind(**{**head, **fields})

    def sign(self, content: Request | dict[str, Any], key: dict[str, str] | None = None, **header: Any) -> str:
        protected = {"alg": "ES256", "typ": REQUEST_TYPE, "kid": self.agent_id, **header}
        data = msgspec.json.encode(content) if isinstance(content, msgspec.Struct) else json.dumps(content).encode()
        text: str = jws.serialize_compact(
            {name: value for name, value in protected.items() if value is not None},
            data,
            ECKey.import_key({**(key or self.key)}),
            algorithms=["ES256"],
        )
        return text

    def verify(self, body: str | bytes, kind: Any, request_id: str) -> Any:
        assert self.trust is not None
        return verify_reply(json.loads(body)["reply"], kind, self.agent_id, request_id, self.trust)
