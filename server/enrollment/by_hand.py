"""Parses the enrollment request that `license-agent init` writes, strictly. Pure."""

from dataclasses import dataclass
from typing import Any

from contracts.claims import AGENT_ID
from contracts.jose import MalformedToken, public_key_from_jwk
from server.agents.activation import public_members
from server.agents.registry import HandKeys
from server.base.errors import RegistryError


@dataclass(frozen=True, slots=True)
class HandRequest:
    """An enrollment request."""

    agent_id: str
    backend: str
    hw_id: str | None
    keys: HandKeys


def read_request(content: Any) -> HandRequest:
    """Parses a request from JSON content.

    Raises:
        RegistryError: it is not what `license-agent init` writes.
    """
    if not isinstance(content, dict):
        raise RegistryError("the file is not an enrollment request: it is not a JSON object")
    agent_id, backend, hw_id = content.get("agent_id"), content.get("backend"), content.get("hardware_id")
    if not isinstance(agent_id, str) or not AGENT_ID.fullmatch(agent_id):
        raise RegistryError("the enrollment request has no valid agent_id")
    if backend not in ("tpm", "software") or not isinstance(content.get("agreement_key"), dict):
        raise RegistryError("the enrollment request has no agreement_key, or no backend (tpm or software)")
    if hw_id is not None and not (isinstance(hw_id, str) and len(hw_id) == 64):
        raise RegistryError("the enrollment request has no valid hardware_id")
    keys = {name: _key(content, name) for name in ("agreement", "identity", "attestation")}
    return HandRequest(agent_id, backend, hw_id, keys)


def _key(content: dict[str, Any], name: str) -> dict[str, str] | None:
    jwk = content.get(f"{name}_key")
    if jwk is None:
        return None
    try:
        public_key_from_jwk(jwk if isinstance(jwk, dict) else {})
    except MalformedToken as error:
        raise RegistryError(f"the enrollment request has an invalid {name}_key: {error}") from None
    return public_members(jwk)
