"""Lets each machine try each product once, for ever: also after its agent was deleted and the machine was enrolled again.

A machine is its hardware id. With a TPM it is the TPM's; without one, what a user with root can change: such a user gets trials
without end (threat model), and the attestation level of an agent says which kind it is.
"""

from sqlalchemy.orm import Session

from server.base.errors import Conflict
from server.registry.models.core import Agent
from server.registry.models.licensing import Trial


def begin(session: Session, agent: Agent, product_id: str, license_id: str, now: int, *, exists: bool) -> None:
    """Notes that a machine tries a product.

    Args:
        session: of a writing transaction that has locked the agent.
        agent: whose machine it is.
        product_id: what is tried.
        license_id: the trial's license.
        now: seconds since 1970 UTC.
        exists: whether there is that license already. If there is none, a license with the same id had the trial, and has gone.

    Raises:
        Conflict: the machine has no hardware id, or has had its trial.
    """
    if agent.hw_id is None:
        raise Conflict(
            f"agent {agent.id!r} has no hardware id of its own, so it gets no trial: provision the device, or sell it a license"
        )
    known = session.get(Trial, (agent.hw_id, product_id))
    if known is None:
        session.add(Trial(hw_id=agent.hw_id, product_id=product_id, license_id=license_id, begun_at=now))
        session.flush()
    elif known.license_id != license_id or not exists:
        raise Conflict(
            f"the machine of agent {agent.id!r} has had its trial of product {product_id!r} (license {known.license_id!r}): "
            "sell it a license by another policy"
        )
