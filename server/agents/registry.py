"""Looks up agents, enrolls them by hand, and keeps their status and what they last reported."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from contracts.contact.licensesync import SYNC
from contracts.exchange import RefusalCode
from contracts.jose import public_key_from_jwk
from server.base.errors import NotFound, RegistryError
from server.base.refused import RequestRefused
from server.registry import audit, events
from server.registry.agentcounts import RETIRED, counted, shown_status
from server.registry.dialect import by_bytes
from server.registry.models.core import Agent, Certificate

from . import device_rows
from .seen import went_back

HandKeys = dict[str, dict[str, str] | None]
"""Public JWKs of an agent that is enrolled by hand: `agreement`, and `identity` and `attestation` if it has them."""
ACTIVE, REVOKED, FACTORY_ONLY = "active", "revoked", "factory_only"
CLOCK_TOLERANCE_S = 60
"""How far the clocks of two servers on one registry may differ."""


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent. Times are seconds since 1970 UTC.

    Attributes:
        agent_id: its id.
        serial: its serial number; None if it was enrolled by hand.
        hw_id: the id of its hardware; None if it has none.
        status: active, revoked or factory_only.
        attestation: attested, tpm-unattested or software.
        backend: tpm or software.
        identity_key: public JWK that signs its requests; empty if none is registered.
        agreement_key: public JWK to which secrets are encrypted.
        created_at: when it was first enrolled.
        updated_at: when it was last enrolled, or changed its status.
        last_seen: its last contact; None if it has had none.
        retired_at: when it left service; its status is revoked then. None if it did not.
    """

    agent_id: str
    serial: int | None
    hw_id: str | None
    status: str
    attestation: str
    backend: str
    identity_key: dict[str, str]
    agreement_key: dict[str, str]
    created_at: int
    updated_at: int
    last_seen: int | None
    retired_at: int | None = None

    @property
    def shown_status(self) -> str:
        """The status as people see it: also retired."""
        return shown_status(self.status, self.retired_at)

    def as_json(self) -> dict[str, Any]:
        """All of it, with the status as people see it."""
        return {**asdict(self), "status": self.shown_status}


def row_of(agent: Agent) -> AgentRow:
    """The agent, detached from its session."""
    return AgentRow(
        agent.id,
        agent.serial,
        agent.hw_id,
        agent.status,
        agent.attestation,
        agent.backend,
        {} if agent.identity_key is None else json.loads(agent.identity_key),
        json.loads(agent.agreement_key),
        agent.created_at,
        agent.updated_at,
        agent.last_seen,
        agent.retired_at,
    )


def registered(session: Session, agent_id: str, *, lock: bool = True) -> Agent:
    """An agent that has sent a request.

    Raises:
        RequestRefused: the registry does not know it.
    """
    agent = session.get(Agent, agent_id, with_for_update=lock)
    if agent is None:
        raise RequestRefused(RefusalCode.UNKNOWN_AGENT, "this agent is not registered")
    return agent


def enrolled(session: Session, agent_id: str, *, lock: bool = True) -> Agent:
    """An agent that an administrator has named.

    Raises:
        NotFound: the registry does not know it.
    """
    agent = session.get(Agent, agent_id, with_for_update=lock)
    if agent is None:
        raise NotFound(f"no agent {agent_id!r} is enrolled; 'license-server agents list' lists them")
    return agent


def public_key_pem(session: Session, agent_id: str, name: str) -> str:
    """An agent's `identity` or `attestation` key in PEM.

    Raises:
        RegistryError: there is no such agent, or no such key of it.
    """
    agent = enrolled(session, agent_id, lock=False)
    jwk = {"identity": agent.identity_key, "attestation": agent.attestation_key}[name]
    if jwk is None:
        raise RegistryError(f"no {name} key of agent {agent_id!r} is registered: its enrollment request had none")
    key = public_key_from_jwk(json.loads(jwk))
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def revoke_certificates(session: Session, agent_id: str) -> None:
    """Revokes all of an agent's client certificates, for good."""
    session.execute(update(Certificate).where(Certificate.agent_id == agent_id).values(state="revoked"))


def begin_anew(agent: Agent) -> None:
    """Forgets what was reported: the agent was provisioned or enrolled again, and that ends a halt too."""
    agent.seen_version, agent.seen_at, agent.audit_turns = None, None, 0
    agent.halted_at, agent.halt_version, agent.halt_reason = None, None, None


def counts(state: str, used_at: int | None, last_use: int | None, halted_at: int | None) -> bool:
    """Whether a certificate of an agent that is not revoked counts; `certificates` has the rule.

    Args:
        state: of the certificate.
        used_at: its first use; None before that.
        last_use: the latest first use of the agent's active certificates that have begun by now.
        halted_at: since when the agent's rotations are halted; None if they are not.
    """
    if halted_at is not None and state != "revoked":
        # Two machines have one identity: neither may end the other's certificate.
        return True
    if state != ACTIVE or used_at is None:
        return state == ACTIVE
    return last_use is None or used_at >= last_use


def _last_use(session: Session, agent_id: str, now: int) -> int | None:
    # A certificate of the future was issued while the server's clock was wrong: it ends none before it.
    begun = (Certificate.state == ACTIVE, Certificate.issued_at <= now + CLOCK_TOLERANCE_S)
    return session.scalar(select(func.max(Certificate.used_at)).where(Certificate.agent_id == agent_id, *begun))


def announces_sync(capabilities: str | None) -> bool:
    """Whether an agent has announced that it asks for the changes of its licenses, by its column `capabilities`."""
    return SYNC in (capabilities or "").split()


class Agents:
    """The registered agents. Every method works in the transaction of the session that it is given."""

    def by_certificate(self, session: Session, fingerprint: str, now: int) -> AgentRow | None:
        """The agent with this client certificate, or None if the certificate is unknown or does not count any more.

        A revoked agent is found by its revoked certificates too: it learns that it is revoked. `certificates` has the rule.

        Args:
            session: of any transaction.
            fingerprint: SHA-256 of the certificate, in hex.
            now: seconds since 1970 UTC.
        """
        query = select(Agent, Certificate).join(Certificate, Certificate.agent_id == Agent.id)
        found = session.execute(query.where(Certificate.fingerprint == fingerprint)).first()
        if found is None:
            return None
        agent, certificate = found
        last = _last_use(session, agent.id, now)
        if agent.status != REVOKED and not counts(certificate.state, certificate.used_at, last, agent.halted_at):
            return None
        return row_of(agent)

    def lock(self, session: Session, agent_id: str) -> Agent | None:
        """Waits until no other transaction, of any process, works on this agent, and keeps others out until this one ends.

        As long as the caller holds what is returned, the session finds the agent without asking the database again.
        """
        return session.get(Agent, agent_id, with_for_update=True)

    def listed(
        self, session: Session, status: str | None = None, prefix: str = "", after: str = "", limit: int | None = None
    ) -> list[AgentRow]:
        """Agents by id, in the order of its bytes.

        Args:
            session: of any transaction.
            status: only those with this status, as people see it.
            prefix: only those whose id begins with it; upper and lower case differ.
            after: only those whose id comes after this one.
            limit: at most so many; None for all, which may be a whole fleet.
        """
        agent_id = by_bytes(session, Agent.id)
        query = select(Agent).where(agent_id > after).order_by(agent_id).limit(limit)
        if status == RETIRED:
            query = query.where(Agent.retired_at.is_not(None))
        elif status is not None:
            query = query.where(Agent.status == status, Agent.retired_at.is_(None))
        if prefix:
            # Ids are ASCII.
            query = query.where(agent_id >= prefix, agent_id < prefix + "\x7f")
        return [row_of(agent) for agent in session.scalars(query)]

    def count(self, session: Session) -> dict[str, int]:
        """The number of agents by status, as people see it."""
        return counted(session)

    def enroll_by_hand(
        self, session: Session, agent_id: str, hw_id: str | None, backend: str, keys: HandKeys, now: int
    ) -> None:
        """Registers an agent by the request that an administrator has carried here, or replaces the keys of a known one.

        Raises:
            RegistryError: the agent is revoked, or a device that is no agent has its id.
        """
        agent = session.get(Agent, agent_id, with_for_update=True)
        if agent is not None and agent.status == REVOKED:
            status = shown_status(agent.status, agent.retired_at)
            raise RegistryError(f"agent {agent_id!r} is {status}; 'license-server agents reinstate {agent_id}' undoes that")
        if hw_id is not None and (agent is None or agent.hw_id != hw_id):
            owner = session.scalars(select(Agent).where(Agent.hw_id == hw_id)).first()
            # A test stand runs two agents on one machine. The hardware id does not identify them, and is not stored twice.
            hw_id = None if owner is not None else hw_id
        if agent is None:
            agent = Agent(id=agent_id, status=ACTIVE, created_at=now, attestation="software", urgent=False)
            session.add(agent)
        agent.hw_id = hw_id or agent.hw_id
        agent.backend = backend
        agent.attestation = "tpm-unattested" if backend == "tpm" else "software"
        agent.agreement_key = json.dumps(keys["agreement"])
        agent.identity_key = None if keys.get("identity") is None else json.dumps(keys["identity"])
        agent.attestation_key = None if keys.get("attestation") is None else json.dumps(keys["attestation"])
        agent.updated_at = now
        begin_anew(agent)
        session.flush()
        device_rows.keep(session, agent, now)
        events.emit(session, "agent.enrolled", now, agent=agent_id)
        audit.record(session, "admin", "agent.enrolled", "by_hand", now, agent=agent_id, backend=backend)

    def set_status(self, session: Session, agent_id: str, status: str, now: int) -> None:
        """Changes an agent's status. `REVOKED` also revokes its certificates, for good. A retired one is retired no more.

        Raises:
            RegistryError: there is no such agent.
        """
        agent = enrolled(session, agent_id)
        before = shown_status(agent.status, agent.retired_at)
        agent.status, agent.updated_at, agent.retired_at = status, now, None
        if status == REVOKED:
            revoke_certificates(session, agent_id)
        if status != before:
            events.emit(session, "agent.revoked" if status == REVOKED else "agent.reinstated", now, agent=agent_id)
        audit.record(session, "admin", "agent.status", status, now, agent=agent_id, was=before)

    def saw(self, session: Session, agent_id: str, now: int, audit_seq: int | None, audit_head: str | None) -> int | None:
        """Notes a contact and the head of the agent's audit log; returns the newest record number that the server has seen.

        A log that became shorter, or has another hash under the same number, was changed: that is recorded as an alert.

        Args:
            session: of a writing transaction.
            agent_id: the agent.
            now: seconds since 1970 UTC.
            audit_seq: number of the newest record in the agent's log; None if it reports none.
            audit_head: hash of that record.
        """
        agent = session.get(Agent, agent_id, with_for_update=True)
        if agent is None:
            return None
        agent.last_seen = now
        if audit_seq is None or audit_head is None:
            return agent.audit_seq
        known = agent.audit_seq
        if went_back(agent, audit_seq, audit_head):
            audit.record(session, f"agent {agent_id}", "alert.agent_audit", "went_back", now, seq=audit_seq, known=known)
            return known
        agent.audit_seq, agent.audit_head = audit_seq, audit_head
        return audit_seq

    def asked_as_before(self, session: Session, agent_id: str, now: int) -> None:
        """Notes that an agent has asked as release 0.1.0 does: it may have been set back, and what it announced holds no more.

        Args:
            session: of a writing transaction.
            agent_id: the agent.
            now: seconds since 1970 UTC.
        """
        agent = session.get(Agent, agent_id, with_for_update=True)
        if agent is not None and announces_sync(agent.capabilities):
            agent.capabilities = None
            audit.record(session, f"agent {agent_id}", "agent.capabilities", "withdrawn", now)

    def announced(self, session: Session, agent_id: str, names: tuple[str, ...], now: int) -> None:
        """Notes what an agent says it can do beyond release 0.1.0, and records a change.

        Args:
            session: of a writing transaction.
            agent_id: the agent.
            names: of its capabilities.
            now: seconds since 1970 UTC.
        """
        agent = session.get(Agent, agent_id, with_for_update=True)
        said = " ".join(sorted(set(names)))
        if agent is not None and agent.capabilities != said:
            agent.capabilities = said
            audit.record(session, f"agent {agent_id}", "agent.capabilities", "ok", now, capabilities=said.split())
