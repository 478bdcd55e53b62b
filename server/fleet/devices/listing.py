"""Shows devices: a page of a list with everything that a row has, in a fixed number of statements, and one device."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from server.agents.registry import ACTIVE
from server.registry.agentcounts import shown_status
from server.registry.dialect import by_bytes
from server.registry.models.core import Agent, Certificate
from server.registry.models.fleets import Device, DeviceAttribute, DeviceSeen, DeviceTag, DeviceVersion

from .connection import connection
from .registry import required

DAY_S = 86_400
BLOCKED = "blocked"
"""The status of a blocked device, also of a revoked agent."""
_STATUS = {"revoked": BLOCKED}


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device. Times are seconds since 1970 UTC.

    Attributes:
        device_id: its id.
        kind: agent or ddi.
        name: for people; may be empty.
        hardware: the kind of machine; None if it has not said.
        site: where it is; None if that is not recorded.
        zone: its time zone; None if that is not recorded.
        status: active, factory_only, blocked or retired.
        attestation: attested, tpm-unattested or software; None for a device that is no agent.
        last_contact: None before the first.
        connection: how it stands by that.
        certificate_ends: when the certificate ends that ends last of those that count; None without one.
        certificate_days: days until then, rounded down; below 0 once it has ended.
        versions: by product, as it reported after its last start.
        tags: in order.
        created_at: when it was registered.
        updated_at: when an operator, or the device, changed its row last.
        revision: how often that was, plus one.
    """

    device_id: str
    kind: str
    name: str
    hardware: str | None
    site: str | None
    zone: str | None
    status: str
    attestation: str | None
    last_contact: int | None
    connection: str
    certificate_ends: int | None
    certificate_days: int | None
    versions: dict[str, str]
    tags: tuple[str, ...]
    created_at: int
    updated_at: int
    revision: int


@dataclass(frozen=True, slots=True)
class VersionRow:
    """What a device runs of a product; `reported_at` is since when it reports that, seconds since 1970 UTC."""

    product: str
    version: str
    build_id: str
    reported_at: int


@dataclass(frozen=True, slots=True)
class AttributeRow:
    """An attribute. `source`: operator or device; `updated_at` in seconds since 1970 UTC."""

    name: str
    value: str
    source: str
    updated_at: int


def listed(
    session: Session, now: int, after: str = "", limit: int | None = None, among: Sequence[Select[str]] = ()
) -> list[DeviceRow]:
    """Devices by id, in the order of its bytes.

    Args:
        session: of any transaction.
        now: seconds since 1970 UTC.
        after: only those whose id comes after this one.
        limit: at most so many; None for all, which may be a whole fleet.
        among: queries for ids; only devices that each of them finds.
    """
    device_id = by_bytes(session, Device.id)
    query = select(Device).where(device_id > after, *(Device.id.in_(each) for each in among))
    return _rows(session, list(session.scalars(query.order_by(device_id).limit(limit))), now)


def one(session: Session, device_id: str, now: int) -> DeviceRow:
    """A device. Raises NotFound."""
    return _rows(session, [required(session, device_id)], now)[0]


def versions(session: Session, device_id: str) -> list[VersionRow]:
    """What a device runs, by product."""
    rows = session.scalars(select(DeviceVersion).where(DeviceVersion.device_id == device_id).order_by(DeviceVersion.product))
    return [VersionRow(row.product, row.version, row.build_id, row.reported_at) for row in rows]


def attributes(session: Session, device_id: str) -> list[AttributeRow]:
    """The attributes of a device, by name."""
    mine = select(DeviceAttribute).where(DeviceAttribute.device_id == device_id).order_by(DeviceAttribute.name)
    return [AttributeRow(row.name, row.value, row.source, row.updated_at) for row in session.scalars(mine)]


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A client certificate that counts. Times are seconds since 1970 UTC.

    Attributes:
        number: its serial number, hex.
        issued_at: when it was issued.
        not_after: when it ends.
        days: days until then, rounded down; below 0 once it has ended.
        in_use: whether the device has used it.
    """

    number: str
    issued_at: int
    not_after: int
    days: int
    in_use: bool


def certificates(session: Session, device_id: str, now: int) -> list[CertificateRow]:
    """The client certificates of a device that count, the newest first; two while it changes to a new one."""
    mine = select(Certificate).where(Certificate.agent_id == device_id, Certificate.state == ACTIVE)
    return [
        CertificateRow(row.number, row.issued_at, row.not_after, (row.not_after - now) // DAY_S, row.used_at is not None)
        for row in session.scalars(mine.order_by(Certificate.issued_at.desc(), Certificate.fingerprint))
    ]


def ids(session: Session, query: Select[str], limit: int) -> list[str]:
    """The first ids that a query finds, in the order of their bytes."""
    device_id = by_bytes(session, Device.id)
    return list(session.scalars(select(Device.id).where(Device.id.in_(query)).order_by(device_id).limit(limit)))


def count(session: Session, query: Select[str]) -> int:
    """How many ids a query finds."""
    return session.scalar(select(func.count()).select_from(query.subquery())) or 0


def _rows(session: Session, devices: Sequence[Device], now: int) -> list[DeviceRow]:
    session.flush()
    ids = [device.id for device in devices]
    agents = {row.id: row for row in session.scalars(select(Agent).where(Agent.id.in_(ids)))}
    seen = _pairs(session, select(DeviceSeen.device_id, DeviceSeen.at).where(DeviceSeen.device_id.in_(ids)))
    counting = (Certificate.agent_id.in_(ids), Certificate.state == ACTIVE)
    last = select(Certificate.agent_id, func.max(Certificate.not_after)).where(*counting).group_by(Certificate.agent_id)
    ends = _pairs(session, last)
    tags: dict[str, list[str]] = defaultdict(list)
    for device_id, tag in session.execute(select(DeviceTag.device_id, DeviceTag.tag).where(DeviceTag.device_id.in_(ids))):
        tags[device_id].append(tag)
    runs: dict[str, dict[str, str]] = defaultdict(dict)
    running = select(DeviceVersion).where(DeviceVersion.device_id.in_(ids)).order_by(DeviceVersion.product)
    for row in session.scalars(running):
        runs[row.device_id][row.product] = row.version
    return [
        _row(each, agents.get(each.id), seen.get, ends.get(each.id), runs[each.id], tuple(sorted(tags[each.id])), now)
        for each in devices
    ]


def _pairs(session: Session, query: Select[str, int]) -> dict[str, int]:
    return {str(key): int(value) for key, value in session.execute(query)}


def _row(
    device: Device,
    agent: Agent | None,
    seen: Callable[[str], int | None],
    ends: int | None,
    runs: dict[str, str],
    tags: tuple[str, ...],
    now: int,
) -> DeviceRow:
    if agent is None:
        status = ACTIVE if device.blocked_at is None else BLOCKED
        contact = seen(device.id)
    else:
        status = shown_status(agent.status, agent.retired_at)
        status, contact = _STATUS.get(status, status), agent.last_seen
    return DeviceRow(
        device.id, device.kind, device.name, device.hardware, device.site_id, device.zone, status,
        None if agent is None else agent.attestation, contact, connection(device.kind, contact, now).value, ends,
        None if ends is None else (ends - now) // DAY_S, runs, tags, device.created_at, device.updated_at, device.revision,
    )  # fmt: skip
