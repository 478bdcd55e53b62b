"""The agents' client certificates: issued, recognized, renewed, revoked. Within a transaction of the caller."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import update
from sqlalchemy.orm import Session

from server.keys.keyring import DAY, Keys
from server.keys.pki import fingerprint_of, make_client_certificate, pem_of
from server.registry.models import Agent, Certificate

LIFETIME_S = 30 * DAY
"""Short-lived: a certificate that was lost sight of ends by itself."""


def issue(session: Session, keys: Keys, agent: Agent, key: ec.EllipticCurvePublicKey, now: int) -> tuple[str, ...]:
    """A new certificate for an agent, and those above it but the root, in PEM.

    Args:
        session: a transaction.
        keys: of the server.
        agent: whose it is.
        key: to be certified.
        now: it begins a little before.
    """
    ca, ca_key = keys.issuing_ca(session)
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
    return (pem_of(made), *keys.chain_above_agents(session))


def revoke_all(session: Session, agent_id: str) -> None:
    """Ends all of an agent's certificates."""
    session.execute(update(Certificate).where(Certificate.agent_id == agent_id).values(state="revoked"))


def number_of(pem: str) -> str:
    """The serial number of a certificate, hex."""
    return f"{x509.load_pem_x509_certificate(pem.encode()).serial_number:x}"
