"""Decides whether a selection selects a device from what is known of it: by lookups of that device's rows alone."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.registry.models.fleets import Device, DeviceAttribute, DeviceTag, DeviceVersion, FleetMember

from .syntax import Field, Node, Not, Selection, Some, Term

_OF_DEVICE = (Field.HARDWARE, Field.SITE, Field.KIND, Field.ZONE, Field.ID)


@dataclass(frozen=True, slots=True)
class Facts:
    """What selections go by.

    Attributes:
        values: its id, kind, hardware, site and zone, those that it has.
        tags: its tags.
        attributes: by name.
        versions: by product.
        fleets: those that it is a static member of.
    """

    values: dict[Field, str]
    tags: frozenset[str] = frozenset()
    attributes: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    fleets: frozenset[str] = frozenset()


def facts_of(session: Session, device_id: str, selections: Iterable[Selection]) -> Facts | None:
    """What some selections need to know of a device, in at most five lookups; None if there is no such device."""
    needed = {term.field for selection in selections for term in selection.terms()}
    device = session.get(Device, device_id)
    if device is None:
        return None
    session.flush()
    columns = (device.hardware, device.site_id, device.kind, device.zone, device.id)
    values = {name: value for name, value in zip(_OF_DEVICE, columns, strict=True) if value is not None}
    tags: frozenset[str] = frozenset()
    fleets: frozenset[str] = frozenset()
    attributes: dict[str, str] = {}
    versions: dict[str, str] = {}
    if Field.TAG in needed:
        tags = frozenset(session.scalars(select(DeviceTag.tag).where(DeviceTag.device_id == device_id)))
    if Field.ATTRIBUTE in needed:
        pairs = select(DeviceAttribute.name, DeviceAttribute.value).where(DeviceAttribute.device_id == device_id)
        attributes = dict(session.execute(pairs).all())
    if Field.VERSION in needed:
        known = select(DeviceVersion.product, DeviceVersion.version).where(DeviceVersion.device_id == device_id)
        versions = dict(session.execute(known).all())
    if Field.FLEET in needed:
        fleets = frozenset(session.scalars(select(FleetMember.fleet_id).where(FleetMember.device_id == device_id)))
    return Facts(values, tags, attributes, versions, fleets)


def holds(node: Node, facts: Facts) -> bool:
    """Whether what a selection says is true of a device. Pure."""
    if isinstance(node, Term):
        return _term_holds(node, facts)
    if isinstance(node, Not):
        return not holds(node.part, facts)
    decide = any if isinstance(node, Some) else all
    return decide(holds(part, facts) for part in node.parts)


def _term_holds(term: Term, facts: Facts) -> bool:
    if term.field is Field.TAG:
        return term.value in facts.tags
    if term.field is Field.FLEET:
        return term.value in facts.fleets
    if term.field is Field.ATTRIBUTE:
        return facts.attributes.get(term.name) == term.value
    if term.field is Field.VERSION:
        return term.name in facts.versions and term.admits(facts.versions[term.name])
    if term.prefix:
        return facts.values[Field.ID].startswith(term.value)
    return facts.values.get(term.field) == term.value
