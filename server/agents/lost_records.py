"""Recovers what a registry that was restored from an older backup has lost: certificates and serial numbers issued since.

Every certificate that comes here has been verified, by TLS or behind a proxy by `web.clientchain`: our CA has issued it, and
vouches for the serial number in it.
"""

from sqlalchemy.orm import Session

from server.keys.pki import BACKDATE_S
from server.registry import audit
from server.registry.database import present_number, skip_ahead
from server.registry.models.core import Agent, Certificate
from server.web.peers import Peer

from .certificates import LIFETIME_S
from .registry import ACTIVE, AgentRow, row_of

FORMER_BACKDATE_S = 300
MAX_DISPUTED = 1000
"""Disputed certificates that are remembered, so that each is recorded once."""


def issued_at(peer: Peer) -> int:
    """When this server issued a certificate, at the earliest.

    By its length: release 0.1.0 dated a certificate back by 300 s, later ones by `BACKDATE_S`. One that ends with its CA is
    shorter, and counts as dated back by the former.
    """
    return min(max(peer.not_after - LIFETIME_S, peer.not_before + FORMER_BACKDATE_S), peer.not_before + BACKDATE_S)


class LostRecords:
    """Certificates and serial numbers that the registry has lost."""

    def __init__(self) -> None:
        self._disputed: set[str] = set()

    def find(self, session: Session, peer: Peer) -> AgentRow | None:
        """The agent that a certificate names of which the registry has no record, or None.

        Such a certificate was issued after the backup was made. One from before the agent was last provisioned, or its status
        changed, is not valid any more.
        """
        agent = session.get(Agent, peer.agent_id)
        if agent is None or session.get(Certificate, peer.fingerprint) is not None:
            return None
        return None if issued_at(peer) < agent.updated_at else row_of(agent)

    def adopt(self, session: Session, peer: Peer, now: int) -> None:
        """Registers a lost certificate again, once its agent has signed a request."""
        session.add(
            Certificate(
                fingerprint=peer.fingerprint,
                agent_id=peer.agent_id,
                number=peer.number,
                state=ACTIVE,
                issued_at=issued_at(peer),
                not_after=peer.not_after,
            )
        )
        audit.record(session, f"agent {peer.agent_id}", "certificate.adopted", "alert", now, certificate=peer.number)

    def is_lost_agent(self, session: Session, peer: Peer) -> bool:
        """Whether a certificate names an agent that the registry has lost, with a serial number above the counter."""
        if peer.serial is None or not peer.agent_id or session.get(Agent, peer.agent_id) is not None:
            return False
        return present_number(session, "serial") < peer.serial

    def skip_serial(self, session: Session, peer: Peer, now: int) -> None:
        """Raises the counter above a lost agent's serial number, so that no other device gets it."""
        if peer.serial is not None and skip_ahead(session, "serial", peer.serial):
            audit.record(session, "server", "registry.behind", "alert", now, agent=peer.agent_id, serial=peer.serial)

    def is_new_dispute(self, peer: Peer) -> bool:
        """Returns True once for each lost certificate whose holder signs with another key than the agent that it names.

        Either the device was provisioned again after the backup, or the holder is another device.
        """
        if peer.fingerprint in self._disputed or len(self._disputed) >= MAX_DISPUTED:
            return False
        self._disputed.add(peer.fingerprint)
        return True

    def record_dispute(self, session: Session, peer: Peer, now: int) -> None:
        """Records a dispute."""
        audit.record(session, "server", "registry.behind", "alert", now, agent=peer.agent_id, certificate=peer.number)
