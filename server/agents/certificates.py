"""Issues and renews the agents' TLS client certificates."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.orm import Session

from server.keys.keyring import Keyring
from server.keys.pki import fingerprint_of, key_of_csr, make_client_certificate, pem_of
from server.registry import audit
from server.registry.models import Agent, Certificate

from .registry import registered

LIFETIME_S = 30 * 86_400
"""Short, so that a certificate that nobody revoked ends by itself."""


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
        """
        ca, ca_key = self._keyring.issuing_ca(session)
        until = min(now + LIFETIME_S, int(ca.not_valid_after_utc.timestamp()))
        made = make_client_certificate(key, ca, ca_key, agent.id, agent.serial, now, until)
        session.add(
            Certificate(
                fingerprint=fingerprint_of(made),
                agent_id=agent.id,
                number=f"{made.serial_number:x}",
                state="active",
                issued_at=now,
                not_after=until,
            )
        )
        return pem_of(made), pem_of(ca)

    def renew(self, session: Session, agent_id: str, csr_pem: str, now: int) -> tuple[str, ...]:
        """Issues a certificate for an agent's new TLS key. The present one stays good, in case the new one does not work.

        Raises:
            RequestRefused: the certificate request is not one of ours, or the agent is not registered.
        """
        key = key_of_csr(csr_pem)
        issued = self.issue(session, registered(session, agent_id), key, now)
        audit.record(session, f"agent {agent_id}", "certificate.renewed", "ok", now, certificate=number_of(issued[0]))
        return issued


def number_of(pem: str) -> str:
    """The serial number of a certificate, in hex."""
    return f"{x509.load_pem_x509_certificate(pem.encode()).serial_number:x}"
