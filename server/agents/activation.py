"""Makes an agent of a device that has proved what it is: serial number, id, keys and client certificate.

Serial numbers come from a locked counter, and only here: they have no gaps, and a device that comes again keeps its own.
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.claims import AGENT_ID
from contracts.exchange import RefusalCode
from server.base.refused import RequestRefused
from server.keys.pki import key_of_csr
from server.registry import audit, events
from server.registry.agentcounts import shown_status
from server.registry.database import next_number
from server.registry.models.core import Agent

from . import device_rows
from .certificates import ClientCertificates, number_of
from .enrollment_tokens import spend
from .registry import ACTIVE, REVOKED, begin_anew, revoke_certificates


@dataclass(frozen=True, slots=True)
class ProvenDevice:
    """What a device has proved, and what it asks for.

    Attributes:
        hw_id: the id of its hardware.
        backend: tpm or software.
        level: attested, tpm-unattested or software.
        identity_key: public JWK that will sign its requests.
        agreement_key: public JWK to which secrets will be encrypted.
        attestation_key: public JWK that has certified the other two.
        csr_pem: the certificate request for its TLS key.
        agent_id: the id that it wants; None lets the server choose.
    """

    hw_id: str
    backend: str
    level: str
    identity_key: dict[str, str]
    agreement_key: dict[str, str]
    attestation_key: dict[str, str]
    csr_pem: str
    agent_id: str | None


@dataclass(frozen=True, slots=True)
class Activated:
    """A device that has become an agent.

    Attributes:
        agent_id: its id.
        serial: its serial number.
        certificates: its client certificate and the issuing CA's, in PEM.
    """

    agent_id: str
    serial: int
    certificates: tuple[str, ...]


def public_members(jwk: dict[str, Any]) -> dict[str, str]:
    """The members of a public P-256 JWK, without any others."""
    return {name: str(jwk[name]) for name in ("kty", "crv", "x", "y")}


class Activation:
    """Makes agents.

    Args:
        certificates: issues their client certificates.
    """

    def __init__(self, certificates: ClientCertificates) -> None:
        self._certificates = certificates

    def activate(self, session: Session, token_id: int, device: ProvenDevice, now: int) -> Activated:
        """Makes a device an agent, or renews one that comes again: it keeps its serial number and id.

        Args:
            session: of a writing transaction.
            token_id: the enrollment token that the device has used.
            device: what it has proved.
            now: seconds since 1970 UTC.

        Raises:
            RequestRefused: the device is revoked, the token is not its own, or the id belongs to another device.
        """
        key = key_of_csr(device.csr_pem)
        agent = self._agent(session, device, now)
        status = spend(session, token_id, device.hw_id, agent.id, now)
        again = agent.identity_key is not None
        agent.status = status
        agent.backend = device.backend
        agent.attestation = device.level
        agent.identity_key = json.dumps(public_members(device.identity_key))
        agent.agreement_key = json.dumps(public_members(device.agreement_key))
        agent.attestation_key = json.dumps(public_members(device.attestation_key))
        agent.updated_at = now
        agent.urgent = again
        agent.audit_seq, agent.audit_head = None, None
        begin_anew(agent)
        session.flush()
        device_rows.keep(session, agent, now)
        revoke_certificates(session, agent.id)
        issued = self._certificates.issue(session, agent, key, now)
        events.emit(session, "agent.enrolled", now, agent=agent.id)
        audit.record(
            session,
            f"device {device.hw_id[:16]}",
            "agent.activated",
            "again" if again else "ok",
            now,
            agent=agent.id,
            serial=agent.serial,
            attestation=device.level,
            certificate=number_of(issued[0]),
        )
        return Activated(agent.id, agent.serial or 0, issued)

    def _agent(self, session: Session, device: ProvenDevice, now: int) -> Agent:
        """The agent that this device is, locked, with a serial number."""
        agent = session.scalars(select(Agent).where(Agent.hw_id == device.hw_id).with_for_update()).first()
        if agent is None:
            serial = next_number(session, "serial")
            # The device may have come twice, and been faster while this transaction waited for the counter.
            if session.scalars(select(Agent).where(Agent.hw_id == device.hw_id)).first() is not None:
                raise RequestRefused(RefusalCode.UNAVAILABLE, "this device is being provisioned already; try again", 1)
            return _new_agent(session, serial, device, now)
        if agent.status == REVOKED:
            status = shown_status(agent.status, agent.retired_at)
            raise RequestRefused(RefusalCode.AGENT_REVOKED, f"this device is {status}")
        if device.agent_id not in (None, agent.id):
            raise RequestRefused(
                RefusalCode.CLAIM_REFUSED,
                f"this device is already agent {agent.id!r}; fix [agent] id in its configuration, or remove it",
            )
        if agent.serial is None:
            agent.serial = next_number(session, "serial")
        return agent


def _new_agent(session: Session, serial: int, device: ProvenDevice, now: int) -> Agent:
    wanted = device.agent_id
    agent_id = wanted or f"pos-{serial:06d}"
    if not AGENT_ID.fullmatch(agent_id):
        raise RequestRefused(RefusalCode.BAD_REQUEST, "agent_id is not a valid agent id")
    if session.get(Agent, agent_id) is not None or device_rows.taken(session, agent_id):
        if wanted is not None:
            raise RequestRefused(RefusalCode.CLAIM_REFUSED, f"the id {agent_id!r} belongs to another device")
        agent_id = f"pos-{serial:06d}-{device.hw_id[:8]}"
    agent = Agent(
        id=agent_id,
        serial=serial,
        hw_id=device.hw_id,
        status=ACTIVE,
        attestation="software",
        backend="software",
        agreement_key="{}",
        urgent=False,
        created_at=now,
        updated_at=now,
    )
    session.add(agent)
    return agent
