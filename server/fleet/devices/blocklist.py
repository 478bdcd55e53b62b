"""Blocks devices: the server refuses each request of a blocked device from the next one on, also on an open connection.

For an agent, to be blocked is to be revoked: `server.exchange` looks at the agent's row with each request. A device of another
kind has `blocked_at`, at which whoever answers it looks with each request (`require_admitted`).
"""

from sqlalchemy.orm import Session

from server.agents.registry import ACTIVE, REVOKED, Agents, enrolled
from server.base.errors import NotAllowed
from server.registry import audit
from server.registry.models.core import Agent
from server.registry.models.fleets import Device

from .registry import AGENT, required


def block(session: Session, agents: Agents, device_id: str, now: int) -> None:
    """Blocks a device. An agent is revoked, with its certificates.

    Args:
        session: of a writing transaction.
        agents: the registered agents.
        device_id: the device.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such device.
    """
    device = _locked(session, device_id)
    if device.kind == AGENT:
        agents.set_status(session, device_id, REVOKED, now)
    elif device.blocked_at is None:
        device.blocked_at = device.updated_at = now
        device.revision += 1
        audit.record(session, audit.ADMIN, "device.blocked", "ok", now, device=device_id, kind=device.kind)


def unblock(session: Session, agents: Agents, device_id: str, now: int) -> None:
    """Takes a device off the blocklist. An agent's certificates stay revoked: it must be provisioned again.

    Args:
        session: of a writing transaction.
        agents: the registered agents.
        device_id: the device.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such device.
    """
    device = _locked(session, device_id)
    if device.kind == AGENT:
        agent = session.get(Agent, device_id)
        if agent is not None and agent.status == REVOKED:
            agents.set_status(session, device_id, ACTIVE, now)
    elif device.blocked_at is not None:
        device.blocked_at, device.updated_at, device.revision = None, now, device.revision + 1
        audit.record(session, audit.ADMIN, "device.unblocked", "ok", now, device=device_id, kind=device.kind)


def _locked(session: Session, device_id: str) -> Device:
    """The device, locked; an agent before its device, as whoever answers the agent locks them."""
    if required(session, device_id).kind == AGENT:
        enrolled(session, device_id)
    return required(session, device_id, lock=True)


def require_admitted(device: Device) -> None:
    """Returns if a device that is no agent may use the server; raises NotAllowed if it is blocked."""
    if device.blocked_at is not None:
        raise NotAllowed(f"device {device.id!r} is blocked; 'license-server devices unblock {device.id}' undoes that")
