"""Declares the tables of devices and fleets. Times are seconds since 1970 UTC."""

from sqlalchemy import BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class Device(Base):
    """A device that the server manages. `kind`: agent (its id is the agent's) or ddi.

    `hardware` is the kind of machine that it says it is; `zone` is an IANA time zone. `blocked_at` is when a device that is no
    agent was put on the blocklist; an agent's own row says whether it is revoked.
    """

    __tablename__ = "device"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(128))
    hardware: Mapped[str | None] = mapped_column(String(64))
    zone: Mapped[str | None] = mapped_column(String(64))
    site_id: Mapped[str | None] = mapped_column(String(64))
    blocked_at: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)


class DeviceSeen(Base):
    """When a device that is no agent last contacted the server. Written in batches; an agent's is in its own row."""

    __tablename__ = "device_seen"
    __table_args__ = {"postgresql_with": {"fillfactor": 70}}  # noqa: RUF012 -- declared so by SQLAlchemy
    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger)


class DeviceTag(Base):
    """A tag that an operator gave a device."""

    __tablename__ = "device_tag"
    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tag: Mapped[str] = mapped_column(String(64), primary_key=True)


class DeviceAttribute(Base):
    """An attribute of a device. `source`: operator, or device if the device reported it."""

    __tablename__ = "device_attribute"
    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(256))
    source: Mapped[str] = mapped_column(String(16))
    updated_at: Mapped[int] = mapped_column(BigInteger)


class DeviceVersion(Base):
    """What a device runs of a product, as it last reported after a start."""

    __tablename__ = "device_version"
    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    product: Mapped[str] = mapped_column(String(32), primary_key=True)
    version: Mapped[str] = mapped_column(String(64))
    build_id: Mapped[str] = mapped_column(String(64))
    reported_at: Mapped[int] = mapped_column(BigInteger)


class Fleet(Base):
    """A fleet: static members, and the devices that `selection` selects (none if it is missing).

    A device may be in several fleets; the one of the lowest `rank` configures it. `tags` is a JSON list, `policy` a JSON
    object; `configuration` is the number of the configuration that counts, missing before the first. `rotations` counts the
    certificates that its agents renewed.
    """

    __tablename__ = "fleet"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    tags: Mapped[str] = mapped_column(Text)
    selection: Mapped[str | None] = mapped_column(Text)
    rank: Mapped[int] = mapped_column(BigInteger, unique=True)
    policy: Mapped[str] = mapped_column(Text)
    configuration: Mapped[int | None] = mapped_column(BigInteger)
    rotations: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)


class FleetMember(Base):
    """A device that an operator put into a fleet."""

    __tablename__ = "fleet_member"
    fleet_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)


class FleetConfiguration(Base):
    """A configuration of a fleet. `content` is JSON; it never changes, and a change makes the next number."""

    __tablename__ = "fleet_configuration"
    fleet_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    content: Mapped[str] = mapped_column(Text)
    created_by: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int] = mapped_column(BigInteger)


class DeviceConfiguration(Base):
    """The configuration that a device was last sent, and what it answered. `state`: sent, applied, limited, refused.

    `document` is the number of the document, which only grows for a device; `fleet_id` is missing, and `number` 0, if the
    document ends what a fleet had set.
    """

    __tablename__ = "device_configuration"
    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    document: Mapped[int] = mapped_column(BigInteger)
    fleet_id: Mapped[str | None] = mapped_column(String(64))
    number: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text)
    sent_at: Mapped[int] = mapped_column(BigInteger)
    reported_at: Mapped[int | None] = mapped_column(BigInteger)


Index("device_by_kind", Device.kind, Device.id)
Index("device_by_hardware", Device.hardware, Device.id)
Index("device_by_site", Device.site_id, Device.id)
Index("device_by_zone", Device.zone, Device.id)
Index("device_by_bytes", Device.id).ddl_if("postgresql")  # as `agent_by_bytes`: the migration gives it the collation C
Index("device_by_tag", DeviceTag.tag, DeviceTag.device_id)
Index("device_by_attribute", DeviceAttribute.name, DeviceAttribute.value, DeviceAttribute.device_id)
Index("device_by_version", DeviceVersion.product, DeviceVersion.version, DeviceVersion.device_id)
Index("fleet_of_device", FleetMember.device_id, FleetMember.fleet_id)
Index("device_by_configuration", DeviceConfiguration.fleet_id, DeviceConfiguration.number, DeviceConfiguration.state)
