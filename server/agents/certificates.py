"""Issues and renews the agents' TLS client certificates, and decides which of them count.

At most two of an agent's certificates count: the one whose first use is the latest, and one that was issued since and has not
been used yet. The agent keeps both keys until the new one has worked, so that no lost reply locks it out:

- to issue one ends those that were never used: the agent has not got them, or has thrown them away
- the first use of one ends the one before it

A certificate that was issued while the server's clock was wrong, and begins in the future, ends none: the one before it still
counts.
"""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from contracts.exchange import RefusalCode
from server.base.refused import RequestRefused
from server.keys.keyring import Keyring
from server.keys.pki import fingerprint_of, key_of_csr, make_client_certificate, pem_of
from server.registry import audit
from server.registry.models.core import Agent, Certificate

from .registry import ACTIVE, CLOCK_TOLERANCE_S, registered

LIFETIME_S = 30 * 86_400
"""Short, so that a certificate that nobody revoked ends by itself."""
MAX_ISSUED_A_DAY = 32
"""Certificates that one agent gets in a day; an agent whose new certificates never work asks once an hour."""
DAY_S = 86_400
SUPERSEDED = "superseded"


class ClientCertificates:
    """The agents' client certificates.

    Args:
        keyring: has the issuing CA.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def issue(self, session: Session, agent: Agent, key: ec.EllipticCurvePublicKey, now: int) -> tuple[str, ...]:
        """Issues a certificate and returns it and the issuing CA's, in PEM.

        Args:
            session: of a writing transaction.
            agent: the holder.
            key: the key to certify.
            now: seconds since 1970 UTC; the certificate begins a little earlier.

        Raises:
            RequestRefused: the agent has got `MAX_ISSUED_A_DAY` within a day.
        """
        self._limit(session, agent.id, now)
        mine = (Certificate.agent_id == agent.id, Certificate.state == ACTIVE)
        session.execute(update(Certificate).where(*mine, Certificate.used_at.is_(None)).values(state=SUPERSEDED))
        ca, ca_key = self._keyring.issuing_ca(session)
        until = min(now + LIFETIME_S, int(ca.not_valid_after_utc.timestamp()))
        made = make_client_certificate(key, ca, ca_key, agent.id, agent.serial, now, until)
        session.add(
            Certificate(
                fingerprint=fingerprint_of(made),
                agent_id=agent.id,
                number=f"{made.serial_number:x}",
                state=ACTIVE,
                issued_at=now,
                not_after=until,
            )
        )
        return pem_of(made), pem_of(ca)

    def _limit(self, session: Session, agent_id: str, now: int) -> None:
        issued = (Certificate.agent_id == agent_id, Certificate.issued_at.between(now - DAY_S + 1, now + CLOCK_TOLERANCE_S))
        count, first = session.execute(select(func.count(), func.min(Certificate.issued_at)).where(*issued)).one()
        if count >= MAX_ISSUED_A_DAY:
            raise RequestRefused(
                RefusalCode.RATE_LIMITED,
                f"this agent has got {count} certificates within a day, which is the limit",
                max(first + DAY_S - now, 1),
            )

    def note_use(self, session: Session, agent_id: str, fingerprint: str, now: int) -> None:
        """Notes that an agent has used a certificate for an authentic, fresh request. The first use ends the one before it.

        Args:
            session: of a transaction that has locked the agent.
            agent_id: the agent.
            fingerprint: of the certificate.
            now: seconds since 1970 UTC.
        """
        row = session.get(Certificate, fingerprint)
        if row is None or row.used_at is not None:
            return
        last = session.scalar(select(func.max(Certificate.used_at)).where(Certificate.agent_id == agent_id))
        # Greater than all before it, whatever the clock says: the order of first uses decides which one counts.
        row.used_at = max(now, (last or 0) + 1)
        older = (
            Certificate.agent_id == agent_id,
            Certificate.state == ACTIVE,
            Certificate.used_at.is_(None),
            Certificate.issued_at <= row.issued_at,
            Certificate.fingerprint != fingerprint,
        )
        session.execute(update(Certificate).where(*older).values(state=SUPERSEDED))

    def renew(self, session: Session, agent_id: str, csr_pem: str, now: int) -> tuple[str, ...]:
        """Issues a certificate for an agent's new TLS key. The present one counts until the new one has worked.

        Raises:
            RequestRefused: the certificate request is not one of ours, the agent is not registered, or has got too many.
        """
        key = key_of_csr(csr_pem)
        issued = self.issue(session, registered(session, agent_id), key, now)
        audit.record(session, f"agent {agent_id}", "certificate.renewed", "ok", now, certificate=number_of(issued[0]))
        return issued


def number_of(pem: str) -> str:
    """The serial number of a certificate, in hex."""
    return f"{x509.load_pem_x509_certificate(pem.encode()).serial_number:x}"
