"""Signs where an agent's audit log stood at its last contact, for an auditor who has a copy of the log."""

import json

from sqlalchemy.orm import Session

from server.keys.jose import issue_audit_head
from server.keys.keyring import Keyring
from server.registry import audit

from .registry import enrolled


def sign_audit_head(session: Session, keyring: Keyring, agent_id: str, now: int) -> str:
    """The newest head that the agent has reported, with the agent's public keys, dated `now` and signed.

    Raises:
        RegistryError: there is no such agent.
    """
    agent = enrolled(session, agent_id)
    content = {
        "agent_id": agent.id,
        "audit_seq": agent.audit_seq,
        "audit_head": agent.audit_head,
        "last_contact": agent.last_seen,
        "time": now,
        "identity_key": None if agent.identity_key is None else json.loads(agent.identity_key),
        "attestation_key": None if agent.attestation_key is None else json.loads(agent.attestation_key),
    }
    audit.record(session, "admin", "audit_head.signed", "ok", now, agent=agent_id, seq=agent.audit_seq)
    return issue_audit_head(content, keyring.rotation_key())
