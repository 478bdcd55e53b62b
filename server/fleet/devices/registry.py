"""Keeps devices: those that are agents, and what each device reports of itself."""

from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import UnsetType
from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.contact.updates import RunningVersion
from server.agents import device_rows
from server.agents.registry import enrolled
from server.base.errors import Conflict, NotFound
from server.registry.models.core import Agent
from server.registry.models.fleets import Device, DeviceVersion

AGENT, DDI = device_rows.AGENT, "ddi"
"""Kinds of devices: an agent, and a device that speaks hawkBit's Direct Device Integration."""
KINDS = (AGENT, DDI)


@dataclass(frozen=True, slots=True)
class Changed:
    """What a contact has changed of what is known of a device.

    Attributes:
        hardware: whether it says that it is another kind of machine.
        versions: products whose version or build is another one, or that it has reported for the first time or no more.
    """

    hardware: bool
    versions: tuple[str, ...]


def required(session: Session, device_id: str, *, lock: bool = False) -> Device:
    """A device. Raises NotFound.

    Args:
        session: of any transaction; one that writes, to lock.
        device_id: the device.
        lock: keep others from changing it until the transaction ends.
    """
    device = session.get(Device, device_id, with_for_update=lock or None, populate_existing=lock)
    if device is None:
        raise NotFound(f"there is no device {device_id!r}; 'license-server devices list' lists them")
    return device


def register(session: Session, device_id: str, kind: str, name: str, now: int) -> Device:
    """Registers a device that is no agent.

    Args:
        session: of a writing transaction.
        device_id: its id.
        kind: one of `KINDS`, not `AGENT`.
        name: for people; may be empty.
        now: seconds since 1970 UTC.

    Raises:
        Conflict: an agent or a device has this id.
    """
    if session.get(Agent, device_id) is not None or session.get(Device, device_id) is not None:
        raise Conflict(f"the id {device_id!r} belongs to another device; choose another one")
    device = Device(id=device_id, kind=kind, name=name, created_at=now, updated_at=now, revision=1)
    session.add(device)
    session.flush()
    return device


def ensure_agent(session: Session, agent_id: str, now: int) -> Device:
    """The device that an agent is. Made if it is missing: a release without devices may have enrolled the agent.

    Args:
        session: of a writing transaction that has locked the agent.
        agent_id: the agent.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such agent.
        Conflict: a device that is no agent has this id.
    """
    return device_rows.keep(session, enrolled(session, agent_id, lock=False), now)


def note_contact(
    session: Session, agent_id: str, running: Iterable[RunningVersion], hardware: str | UnsetType | None, now: int
) -> Changed:
    """Notes what an agent reports that it runs, and is. Writes nothing where it reports what is known.

    Args:
        session: of a writing transaction that has locked the agent.
        agent_id: the agent.
        running: each product at most once.
        hardware: the kind of machine; None or UNSET if it does not say.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such agent.
    """
    if device_rows.taken(session, agent_id):
        return Changed(False, ())  # whoever made that row: it costs an agent none of its updates
    device = ensure_agent(session, agent_id, now)
    other = False
    if isinstance(hardware, str) and device.hardware != hardware:
        other = True
        device.hardware, device.updated_at, device.revision = hardware, now, device.revision + 1
    said = {each.product: (each.version, each.build_id) for each in running}
    return Changed(other, note_versions(session, agent_id, said, now))


def note_versions(session: Session, device_id: str, said: dict[str, tuple[str, str]], now: int) -> tuple[str, ...]:
    """Replaces what is known of the versions that a device runs; returns the products that changed.

    Args:
        session: of a writing transaction.
        device_id: the device.
        said: version and build id, by product.
        now: seconds since 1970 UTC.
    """
    session.flush()
    known = {row.product: row for row in session.scalars(select(DeviceVersion).where(DeviceVersion.device_id == device_id))}
    changed = [product for product in known if product not in said]
    for product in changed:
        session.delete(known[product])
    for product, (version, build_id) in said.items():
        row = known.get(product)
        if row is None:
            row = DeviceVersion(device_id=device_id, product=product, version="", build_id="", reported_at=now)
            session.add(row)
        if (row.version, row.build_id) != (version, build_id):
            row.version, row.build_id, row.reported_at = version, build_id, now
            changed.append(product)
    return tuple(sorted(changed))


class Devices:
    """The devices that agents are, for the exchange, which is given what requests act on."""

    def note_contact(
        self, session: Session, agent_id: str, running: Iterable[RunningVersion], hardware: str | UnsetType | None, now: int
    ) -> Changed:
        """As the function `note_contact`."""
        return note_contact(session, agent_id, running, hardware, now)
