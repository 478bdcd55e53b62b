"""Keeps the row of `device` that each agent has: made and removed with the agent, at the site where the agent's machine is.

`server.fleet` builds on these rows. They are kept here, below it, so that no way to enroll or remove an agent passes them by.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from server.base.errors import Conflict
from server.registry.models.core import Agent
from server.registry.models.fleets import (
    Device,
    DeviceAttribute,
    DeviceConfiguration,
    DeviceSeen,
    DeviceTag,
    DeviceVersion,
    FleetMember,
)
from server.registry.models.updates import UpdateAgent

AGENT = "agent"
"""The kind of a device that is an agent."""


def keep(session: Session, agent: Agent, now: int) -> Device:
    """The device that an agent is, at the agent's site; made if it is missing.

    Args:
        session: of a writing transaction that has locked the agent.
        agent: the agent.
        now: seconds since 1970 UTC.

    Raises:
        Conflict: a device that is no agent has this id.
    """
    device = session.get(Device, agent.id)
    if device is None:
        hardware = session.scalar(select(UpdateAgent.hardware).where(UpdateAgent.agent_id == agent.id))
        device = Device(
            id=agent.id, kind=AGENT, name="", hardware=hardware, zone=None, site_id=agent.site_id,
            created_at=now, updated_at=now, revision=1,
        )  # fmt: skip
        session.add(device)
    elif device.kind != AGENT:
        raise Conflict(f"device {agent.id!r} is no agent: give the agent another id, or remove that device first")
    elif device.site_id != agent.site_id:
        device.site_id, device.updated_at, device.revision = agent.site_id, now, device.revision + 1
    return device


def taken(session: Session, device_id: str) -> bool:
    """Whether a device that is no agent has an id."""
    device = session.get(Device, device_id)
    return device is not None and device.kind != AGENT


def remove(session: Session, device_id: str) -> None:
    """Deletes a device with its tags, attributes, versions and memberships. What rollouts record of it stays."""
    session.flush()
    for model in (DeviceTag, DeviceAttribute, DeviceVersion, DeviceSeen, DeviceConfiguration, FleetMember):
        session.execute(delete(model).where(model.device_id == device_id))
    session.execute(delete(Device).where(Device.id == device_id))
