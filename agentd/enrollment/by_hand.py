"""Makes the keys of a new agent and writes its enrollment request, for agents without a link (`license-agent init`)."""

import contextlib
import json
from pathlib import Path

from agentd.base.config import Config
from agentd.base.errors import StartError
from agentd.secrets.open import make_backend, make_store
from agentd.secrets.record import AgentRecord
from contracts.jose import MalformedToken, jwk_from_point
from contracts.trust import parse_trust
from hwsec.errors import AlreadyEnrolled, StoreMissing
from hwsec.store import Contents
from hwsec.vault import Vault


def initialize(config: Config, trust: bytes) -> dict[str, object]:
    """Makes the backend's keys and the first, empty store; returns the enrollment request.

    An initialization that was interrupted continues where it stopped.

    Args:
        config: of the agent.
        trust: content of the server's trust file.

    Raises:
        AlreadyEnrolled: the agent has been initialized.
        HwsecError: the hardware or the disk does not work.
        StartError: the trust file cannot be used.
    """
    try:
        parse_trust(trust)
    except MalformedToken as error:
        raise StartError(f"the trust file cannot be used: {error}") from None
    vault = Vault()
    with contextlib.closing(make_backend(config, vault)) as backend:
        try:
            backend.create()
        except AlreadyEnrolled:
            backend.open()
        store = make_store(config, backend, vault)
        try:
            store.load()
        except StoreMissing:
            if backend.read_anchor()[0] is not None:
                raise
        else:
            raise AlreadyEnrolled(f"{config.store_file} exists already: this agent has been initialized")
        hardware_id = backend.measure_hardware_id()
        store.commit(Contents((), AgentRecord(trust, hardware_id=hardware_id).sections()))
        request: dict[str, object] = {
            "agent_id": config.agent.id,
            "agreement_key": jwk_from_point(backend.agreement_public()),
            "identity_key": jwk_from_point(backend.identity_public()),
            "attestation_key": jwk_from_point(backend.attestation_public()),
            "backend": backend.name,
            "hardware_id": hardware_id,
        }
    vault.close()
    return request


def write_request(request: dict[str, object], out: Path | None) -> str:
    """The request as JSON; also written to `out` if given."""
    text = json.dumps(request, indent=2) + "\n"
    if out is not None:
        out.write_text(text, encoding="utf-8")
    return text
