"""Keeps what is written on a device: its name and time zone, tags, and attributes.

Operators write tags; attributes are written by operators and by the device itself. What an operator has written, the device
does not replace: a device that lies about itself must not move to another fleet by that (threat-model T60).
"""

import re
from collections.abc import Iterable, Mapping

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid
from server.base.times import zone_of
from server.registry import audit
from server.registry.models.fleets import Device, DeviceAttribute, DeviceTag

from .registry import required
from .syntax import NAME_PATTERN

MAX_TAGS = 64
"""Of a device."""
MAX_ATTRIBUTES = 64
"""Of a device."""
MAX_VALUE = 256
"""Characters of an attribute's value."""
TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$"
OPERATOR, DEVICE = "operator", "device"
"""`DeviceAttribute.source`: who has written an attribute."""


def change(session: Session, device_id: str, name: str | None, zone: str | None, now: int) -> Device:
    """Changes a device's name and time zone.

    Args:
        session: of a writing transaction.
        device_id: the device.
        name: for people; None leaves it as it is.
        zone: IANA name; an empty text for none, None leaves it as it is.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such device.
        Invalid: there is no such zone.
    """
    device = required(session, device_id, lock=True)
    if zone:
        try:
            zone_of(zone)
        except ValueError as problem:
            raise Invalid(str(problem)) from None
        if zone == "local":
            raise Invalid("'local' is another zone on each machine; give its name, such as Europe/Berlin")
    device.name = device.name if name is None else name
    device.zone = device.zone if zone is None else zone or None
    _changed(device, now)
    audit.record(session, audit.ADMIN, "device.changed", "ok", now, device=device_id)
    return device


def tag(session: Session, device_ids: Iterable[str], tags: Iterable[str], now: int) -> None:
    """Gives each of some devices each of some tags; those that they have already stay.

    Raises:
        NotFound: one of the devices does not exist.
        Invalid: a tag is malformed.
        Conflict: a device would have more than `MAX_TAGS`.
    """
    wanted = frozenset(tags)
    for each in wanted:
        if not re.search(TAG_PATTERN, each):
            raise Invalid(f"{ascii(each)[:80]} is no tag: use letters, digits and . _ : / - (at most 64 characters)")
    for device in _each(session, device_ids):
        present = set(session.scalars(select(DeviceTag.tag).where(DeviceTag.device_id == device.id)))
        if len(present | wanted) > MAX_TAGS:
            raise Conflict(f"device {device.id!r} would have more than {MAX_TAGS} tags: remove some with 'devices untag'")
        session.add_all(DeviceTag(device_id=device.id, tag=each) for each in sorted(wanted - present))
        _told(session, device, "device.tagged", wanted - present, now)


def untag(session: Session, device_ids: Iterable[str], tags: Iterable[str], now: int) -> None:
    """Takes tags from devices, those that they have. Raises NotFound if one of the devices does not exist."""
    unwanted = frozenset(tags)
    for device in _each(session, device_ids):
        present = set(session.scalars(select(DeviceTag.tag).where(DeviceTag.device_id == device.id)))
        gone = sorted(present & unwanted)
        session.execute(delete(DeviceTag).where(DeviceTag.device_id == device.id, DeviceTag.tag.in_(gone)))
        _told(session, device, "device.untagged", gone, now)


def put_attributes(session: Session, device_id: str, values: Mapping[str, str], now: int) -> tuple[str, ...]:
    """Sets attributes of a device for an operator; returns the names of those that changed. What a device itself reports is
    kept by `fleet.ddi.attributes`.

    Args:
        session: of a writing transaction.
        device_id: the device.
        values: by name.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such device.
        Invalid: a name or value is malformed.
        Conflict: the device would have more than `MAX_ATTRIBUTES`.
    """
    for name, value in values.items():
        if not re.search(NAME_PATTERN, name):
            raise Invalid(
                f"{ascii(name)[:80]} is no name of an attribute: use letters, digits and . _ - (at most 64 characters)"
            )
        if len(value) > MAX_VALUE or not value.isprintable() or not value:
            raise Invalid(f"the value of attribute {name!r} must be one line of 1 to {MAX_VALUE} characters")
    device = required(session, device_id, lock=True)
    session.flush()
    rows = {row.name: row for row in session.scalars(select(DeviceAttribute).where(DeviceAttribute.device_id == device_id))}
    if len(rows.keys() | values.keys()) > MAX_ATTRIBUTES:
        raise Conflict(
            f"device {device_id!r} would have more than {MAX_ATTRIBUTES} attributes: remove some with 'devices unset'"
        )
    changed = []
    for name, value in sorted(values.items()):
        row = rows.get(name)
        if row is None:
            row = DeviceAttribute(device_id=device_id, name=name, value="", source=OPERATOR, updated_at=now)
            session.add(row)
        if (row.value, row.source) != (value, OPERATOR):
            row.value, row.source, row.updated_at = value, OPERATOR, now
            changed.append(name)
    _told(session, device, "device.attributes_set", changed, now)
    return tuple(changed)


def unset_attributes(session: Session, device_id: str, names: Iterable[str], now: int) -> None:
    """Removes attributes of a device, those that it has. Raises NotFound if there is no such device."""
    device = required(session, device_id, lock=True)
    session.flush()
    mine = (DeviceAttribute.device_id == device_id, DeviceAttribute.name.in_(sorted(set(names))))
    gone = sorted(session.scalars(select(DeviceAttribute.name).where(*mine)))
    session.execute(delete(DeviceAttribute).where(*mine))
    _told(session, device, "device.attributes_unset", gone, now)


def _each(session: Session, device_ids: Iterable[str]) -> Iterable[Device]:
    """Locks the devices in the order of their ids, as everybody does."""
    for device_id in sorted(set(device_ids)):
        yield required(session, device_id, lock=True)


def _told(session: Session, device: Device, event: str, names: Iterable[str], now: int) -> None:
    """Records a change of what `names` says, if there is one. A value may be anything, and is in no record."""
    said = sorted(names)
    if said:
        _changed(device, now)
        audit.record(session, audit.ADMIN, event, "ok", now, device=device.id, names=said)


def _changed(device: Device, now: int) -> None:
    device.updated_at, device.revision = now, device.revision + 1
