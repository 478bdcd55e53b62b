"""Makes the keys of a new agent and writes its enrollment request, for agents without a link (`license-agent init`).

The request is in the state directory from before the first commit until it has been handed out. So a command that was killed,
or could not write its output, hands it out when it is run again.
"""

import contextlib
import json
import sys
from pathlib import Path

from agentd.base.config.config import Config
from agentd.base.errors import StartError
from agentd.secrets.open import make_backend, make_store
from agentd.secrets.record import AgentRecord
from common.files import write_atomic
from contracts.jose import MalformedToken, jwk_from_point
from contracts.trust import parse_trust
from hwsec.errors import AlreadyEnrolled, StoreMissing
from hwsec.store import Contents
from hwsec.vault import Vault

PENDING = "enrollment-request.json"
"""The request in the state directory, until it has been handed out. It has public keys only."""


def initialize(config: Config, trust: bytes) -> dict[str, object]:
    """Makes the backend's keys and the first, empty store; returns the enrollment request.

    An initialization that was interrupted continues where it stopped, also if only its request was not handed out.

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
    with contextlib.closing(Vault()) as vault, contextlib.closing(make_backend(config, vault)) as backend:
        try:
            backend.create()
        except AlreadyEnrolled:
            backend.open()
        store = make_store(config, backend, vault)
        hardware_id = backend.measure_hardware_id()
        request: dict[str, object] = {
            "agent_id": config.agent.id,
            "agreement_key": jwk_from_point(backend.agreement_public()),
            "identity_key": jwk_from_point(backend.identity_public()),
            "attestation_key": jwk_from_point(backend.attestation_public()),
            "backend": backend.name,
            "hardware_id": hardware_id,
        }
        pending = config.paths.state_dir / PENDING
        try:
            store.load()
        except StoreMissing:
            if backend.read_anchor()[0] is not None:
                raise
        else:
            if not pending.exists() or pending.read_bytes() != _text(request).encode():
                raise AlreadyEnrolled(f"{config.store_file} exists already: this agent has been initialized")
            return request
        write_atomic(pending, _text(request).encode())
        store.commit(Contents((), AgentRecord(trust, hardware_id=hardware_id).sections()))
    return request


def hand_out(config: Config, request: dict[str, object], out: Path | None) -> None:
    """Writes the request to a file, or to standard output if `out` is None, and forgets it.

    Raises:
        OSError: it cannot be written; the same command can be run again.
    """
    if out is None:
        sys.stdout.write(_text(request))
        sys.stdout.flush()
    else:
        out.write_text(_text(request), encoding="utf-8")
    (config.paths.state_dir / PENDING).unlink(missing_ok=True)


def _text(request: dict[str, object]) -> str:
    return json.dumps(request, indent=2) + "\n"
