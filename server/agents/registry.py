"""The agents: who is who, what they may do, and what they were answered.

Every act is one transaction, with its audit record in it. Serial numbers come from a locked counter row, and only when a device
has proved itself: they have no gaps, and a device that comes again keeps its own.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from contracts.claims import AGENT_ID
from contracts.exchange import RefusalCode
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.keys.keyring import Keys
from server.keys.pki import BACKDATE_S, key_of_csr
from server.registry.audit import Audit
from server.registry.database import Database, next_number, present_number, skip_ahead
from server.registry.models import Agent, Certificate, KeptReply
from server.web.peers import Peer

from . import certificates
from .enrollment_tokens import spend

HandKeys = dict[str, dict[str, str] | None]
ACTIVE, REVOKED, FACTORY_ONLY = "active", "revoked", "factory_only"
ANSWERS_KEPT_S = 48 * 3600
_SWEEP_EVERY = 200
MAX_DISPUTED = 1000


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent. Times are seconds since 1970 UTC.

    Attributes:
        agent_id: its id.
        serial: its number; None for one that was enrolled by hand.
        hw_id: of its hardware; None where it has none.
        status: active, revoked or factory_only.
        attestation: attested, tpm-unattested or software.
        backend: tpm or software.
        identity_key: public JWK that signs its requests.
        agreement_key: public JWK to which secrets are encrypted.
        created_at: first enrolled.
        updated_at: last enrolled, or changed in status.
        last_seen: last contact.
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


@dataclass(frozen=True, slots=True)
class Activated:
    """A device that has become an agent.

    Attributes:
        agent_id: its id.
        serial: its number.
        certificates: PEM; its own, then the issuing CA's.
    """

    agent_id: str
    serial: int
    certificates: tuple[str, ...]


def row_of(agent: Agent) -> AgentRow:
    """The agent without its database."""
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
    )


def public_members(jwk: dict[str, Any]) -> dict[str, str]:
    """The members of a public P-256 JWK, and no others."""
    return {name: str(jwk[name]) for name in ("kty", "crv", "x", "y")}


class Agents:
    """Acts on agents.

    Args:
        database: of the registry.
        keys: certify.
        audit: records.
    """

    def __init__(self, database: Database, keys: Keys, audit: Audit) -> None:
        self._database = database
        self._keys = keys
        self._audit = audit
        self._answers = 0
        self._disputed: set[str] = set()

    # Who is who

    def by_certificate(self, fingerprint: str) -> AgentRow | None:
        """The agent with that client certificate; None if the certificate counts no more.

        One whose agent is revoked is found all the same: it is told that it is.
        """
        query = select(Agent, Certificate.state).join(Certificate, Certificate.agent_id == Agent.id)
        with self._database.reading() as session:
            found = session.execute(query.where(Certificate.fingerprint == fingerprint)).first()
        if found is None or (found[1] != "active" and found[0].status != REVOKED):
            return None
        return row_of(found[0])

    def by_lost_record(self, peer: Peer) -> AgentRow | None:
        """The agent that a certificate names of which there is no record, though our CA has issued it (TLS has verified that).

        Such a certificate was issued after the backup that this registry was restored from. One from before the agent was last
        provisioned, or its status changed, counts no more.
        """
        with self._database.reading() as session:
            agent = session.get(Agent, peer.agent_id)
            if agent is None or session.get(Certificate, peer.fingerprint) is not None:
                return None
            return None if peer.not_before + BACKDATE_S < agent.updated_at else row_of(agent)

    def adopt(self, peer: Peer, now: int) -> None:
        """Takes a certificate in again that the registry has lost, once its agent has signed a request."""
        with self._database.transaction() as session:
            session.add(
                Certificate(
                    fingerprint=peer.fingerprint,
                    agent_id=peer.agent_id,
                    number=peer.number,
                    state=ACTIVE,
                    issued_at=peer.not_before + BACKDATE_S,
                    not_after=peer.not_after,
                )
            )
            agent = f"agent {peer.agent_id}"
            self._audit.record(agent, "certificate.adopted", "alert", now, session=session, certificate=peer.number)

    def missed(self, peer: Peer, now: int) -> None:
        """Takes note of an agent that the registry has lost: its number is not given to another device."""
        if peer.serial is None or not peer.agent_id:
            return
        with self._database.reading() as session:
            if session.get(Agent, peer.agent_id) is not None or present_number(session, "serial") >= peer.serial:
                return
        with self._database.transaction() as session:
            if skip_ahead(session, "serial", peer.serial):
                fields = {"agent": peer.agent_id, "serial": peer.serial}
                self._audit.record("server", "registry.behind", "alert", now, session=session, **fields)

    def disputed(self, peer: Peer, now: int) -> None:
        """Takes note, once for each, of a lost certificate whose holder signs with another key than the agent that it names.

        The device was provisioned anew after the backup, or that is another device.
        """
        if peer.fingerprint not in self._disputed and len(self._disputed) < MAX_DISPUTED:
            self._disputed.add(peer.fingerprint)
            self._audit.record("server", "registry.behind", "alert", now, agent=peer.agent_id, certificate=peer.number)

    def by_id(self, agent_id: str) -> AgentRow | None:
        """The agent with that id."""
        with self._database.reading() as session:
            agent = session.get(Agent, agent_id)
            return None if agent is None else row_of(agent)

    def listed(self) -> list[AgentRow]:
        """All agents, by id."""
        with self._database.reading() as session:
            return [row_of(agent) for agent in session.scalars(select(Agent).order_by(Agent.id))]

    def count(self) -> dict[str, int]:
        """How many agents there are of each status."""
        counts = {ACTIVE: 0, REVOKED: 0, FACTORY_ONLY: 0}
        for row in self.listed():
            counts[row.status] += 1
        return counts

    # How they come and go

    def enroll_by_hand(self, agent_id: str, hw_id: str | None, backend: str, keys: HandKeys, now: int) -> None:
        """Registers an agent whose request an administrator has brought, or gives a known one the keys of its new one.

        Args:
            agent_id: what it calls itself.
            hw_id: of its hardware.
            backend: tpm or software.
            keys: public JWKs: `agreement`, and `identity` and `attestation` where there are.
            now: when.

        Raises:
            RegistryError: the agent is revoked, or the hardware belongs to another one.
        """
        with self._database.transaction() as session:
            agent = session.get(Agent, agent_id, with_for_update=True)
            if agent is not None and agent.status == REVOKED:
                raise RegistryError(f"agent {agent_id!r} is revoked: 'license-server agents reinstate' takes that back")
            if hw_id is not None and (agent is None or agent.hw_id != hw_id):
                owner = session.scalars(select(Agent).where(Agent.hw_id == hw_id)).first()
                # A stand plays two agents on one machine; the hardware then tells nothing, and is not kept twice.
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
            self._audit.record("admin", "agent.enrolled", "by_hand", now, session=session, agent=agent_id, backend=backend)

    def activate(
        self,
        claim_id: int,
        hw_id: str,
        backend: str,
        attestation_level: str,
        identity_key: dict[str, str],
        agreement_key: dict[str, str],
        attestation_key: dict[str, str],
        csr_pem: str,
        wanted_agent_id: str | None,
        now: int,
    ) -> Activated:
        """Makes a device an agent, once it has proved what it is. The same device may come again: it keeps serial and id.

        Raises:
            RequestRefused: it is revoked, the claim is not its own, or the id belongs to another one.
        """
        key = key_of_csr(csr_pem)
        with self._database.transaction() as session:
            agent = session.scalars(select(Agent).where(Agent.hw_id == hw_id).with_for_update()).first()
            if agent is not None and agent.status == REVOKED:
                raise RequestRefused(RefusalCode.AGENT_REVOKED, "this device is revoked")
            if agent is None:
                serial = next_number(session, "serial")
                # Somebody else may have been here while this one waited for the counter.
                agent = session.scalars(select(Agent).where(Agent.hw_id == hw_id)).first()
                if agent is not None:
                    raise RequestRefused(RefusalCode.UNAVAILABLE, "this device is being provisioned already; ask again", 1)
                agent = self._new_agent(session, serial, hw_id, wanted_agent_id, now)
            elif wanted_agent_id not in (None, agent.id):
                raise RequestRefused(
                    RefusalCode.CLAIM_REFUSED,
                    f"this device is agent {agent.id!r} already; mend its [agent] id, or leave it out",
                )
            elif agent.serial is None:
                agent.serial = next_number(session, "serial")
            status = spend(session, claim_id, hw_id, agent.id, now)
            again = agent.identity_key is not None
            agent.status = status
            agent.backend = backend
            agent.attestation = attestation_level
            agent.identity_key = json.dumps(public_members(identity_key))
            agent.agreement_key = json.dumps(public_members(agreement_key))
            agent.attestation_key = json.dumps(public_members(attestation_key))
            agent.updated_at = now
            agent.urgent = again
            agent.audit_seq, agent.audit_head = None, None
            session.flush()
            certificates.revoke_all(session, agent.id)
            issued = certificates.issue(session, self._keys, agent, key, now)
            self._audit.record(
                f"device {hw_id[:16]}",
                "agent.activated",
                "again" if again else "ok",
                now,
                session=session,
                agent=agent.id,
                serial=agent.serial,
                attestation=attestation_level,
                certificate=certificates.number_of(issued[0]),
            )
            return Activated(agent.id, agent.serial or 0, issued)

    def _new_agent(self, session: Session, serial: int, hw_id: str, wanted: str | None, now: int) -> Agent:
        agent_id = wanted or f"pos-{serial:06d}"
        if not AGENT_ID.fullmatch(agent_id):
            raise RequestRefused(RefusalCode.BAD_REQUEST, "that is no agent id")
        if session.get(Agent, agent_id) is not None:
            if wanted is not None:
                raise RequestRefused(RefusalCode.CLAIM_REFUSED, f"the id {agent_id!r} belongs to another device")
            agent_id = f"pos-{serial:06d}-{hw_id[:8]}"
        agent = Agent(
            id=agent_id,
            serial=serial,
            hw_id=hw_id,
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

    def set_status(self, agent_id: str, status: str, now: int) -> None:
        """Revokes an agent, which ends its certificates at once, or takes that back.

        Raises:
            RegistryError: there is no such agent.
        """
        with self._database.transaction() as session:
            agent = session.get(Agent, agent_id, with_for_update=True)
            if agent is None:
                raise RegistryError(f"no agent {agent_id!r} is enrolled; 'license-server agents list' lists them")
            before, agent.status, agent.updated_at = agent.status, status, now
            if status == REVOKED:
                certificates.revoke_all(session, agent_id)
            self._audit.record("admin", "agent.status", status, now, session=session, agent=agent_id, was=before)

    def renew_certificate(self, agent_id: str, csr_pem: str, now: int) -> tuple[str, ...]:
        """A certificate for a new TLS key. The present one stays good until its end, should the new one not work."""
        key = key_of_csr(csr_pem)
        with self._database.transaction() as session:
            agent = session.get(Agent, agent_id, with_for_update=True)
            if agent is None:
                raise RequestRefused(RefusalCode.UNKNOWN_AGENT, "this agent is not registered")
            issued = certificates.issue(session, self._keys, agent, key, now)
            number = certificates.number_of(issued[0])
            self._audit.record(f"agent {agent_id}", "certificate.renewed", "ok", now, session=session, certificate=number)
            return issued

    # What they say, and were told

    def saw(self, agent_id: str, now: int, fingerprint: str, audit_seq: int | None, audit_head: str | None) -> int | None:
        """Takes note of a contact, and of the head of the agent's audit log; returns the number acknowledged so far.

        A log that has become shorter, or has another head at the same place, is recorded as an alert: somebody changed it.
        """
        with self._database.transaction() as session:
            agent = session.get(Agent, agent_id, with_for_update=True)
            if agent is None:
                return None
            agent.last_seen = now
            certificate = session.get(Certificate, fingerprint)
            if certificate is not None and certificate.used_at is None:
                certificate.used_at = now
            if audit_seq is None or audit_head is None:
                return agent.audit_seq
            known = agent.audit_seq
            if known is not None and (audit_seq < known or (audit_seq == known and audit_head != agent.audit_head)):
                self._audit.record(
                    f"agent {agent_id}", "alert.agent_audit", "went_back", now, session=session, seq=audit_seq, known=known
                )
                return known
            agent.audit_seq, agent.audit_head = audit_seq, audit_head
            return audit_seq

    @contextmanager
    def unit(self, agent_id: str) -> Iterator[AgentRow | None]:
        """One transaction for all that this thread does, alone with this agent over every process; the agent as it is then."""
        with self._database.unit() as session:
            agent = session.get(Agent, agent_id, with_for_update=True)
            yield None if agent is None else row_of(agent)

    def answer_of(self, agent_id: str, request_id: str) -> tuple[str, str] | None:
        """Digest of the request and the reply that was given to it; None if there was none."""
        with self._database.reading() as session:
            row = session.get(KeptReply, (agent_id, request_id))
            return None if row is None else (row.digest, row.reply)

    def keep_answer(self, agent_id: str, request_id: str, digest: str, reply: str, now: int) -> None:
        """Keeps a reply, for a request that may come again."""
        with self._database.transaction() as session:
            row = KeptReply(
                agent_id=agent_id, request_id=request_id, digest=digest, reply=reply, kept_until=now + ANSWERS_KEPT_S
            )
            session.add(row)
            self._answers += 1
            if self._answers % _SWEEP_EVERY == 1:
                session.execute(delete(KeptReply).where(KeptReply.kept_until < now))
