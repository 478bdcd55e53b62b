"""Acts on devices: list, show, label, block."""

import time
from typing import Annotated

from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, AgentId, Context, Form, Listed, Number, PageForm, Sheet, Time, VendorId, page, revision_tag
from server.fleet.devices import blocklist, labels, listing
from server.fleet.devices import registry as devices
from server.fleet.devices.labels import MAX_ATTRIBUTES, MAX_TAGS, MAX_VALUE, TAG_PATTERN
from server.fleet.devices.selection import parse, selecting
from server.fleet.devices.syntax import MAX_CHARS, NAME_PATTERN
from server.fleet.fleets import fleets, membership

MAX_DEVICES = 1000
"""Devices of one request."""
SelectionText = Annotated[str, Field(max_length=MAX_CHARS, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""A selection; `server.fleet.devices.syntax` reads it."""
DeviceIds = Annotated[list[AgentId], Field(min_length=1, max_length=MAX_DEVICES)]
Tag = Annotated[str, Field(pattern=TAG_PATTERN)]
AttributeName = Annotated[str, Field(pattern=NAME_PATTERN)]
AttributeValue = Annotated[str, Field(min_length=1, max_length=MAX_VALUE, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Name = Annotated[str, Field(max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Zone = Annotated[str, Field(max_length=64, pattern=r"^([A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2})?$")]


class ManagedDevice(Form):
    """A device; times are seconds since 1970 UTC. `kind` is agent or ddi, and `status` active, factory_only, blocked or
    retired. `connection` is seen, late, silent or never. `versions` are by product, as reported after the last start.
    """

    device_id: str
    kind: str
    name: str
    hardware: str | None
    site: str | None
    zone: str | None
    status: str
    attestation: str | None
    last_contact: Time | None
    connection: str
    certificate_ends: Time | None
    certificate_days: int | None
    versions: dict[str, str]
    tags: tuple[str, ...]
    created_at: Time
    updated_at: Time
    revision: Number


class RunningProduct(Form):
    """What a device runs of a product, and since when it reports that."""

    product: str
    version: str
    build_id: str
    reported_at: Time


class Attribute(Form):
    """An attribute. `source` is operator or device."""

    name: str
    value: str
    source: str
    updated_at: Time


class DeviceCertificate(Form):
    """A client certificate of a device that counts. `days` are those that are left, below 0 once it has ended."""

    number: str
    issued_at: Time
    not_after: Time
    days: int
    in_use: bool


class DeviceDetails(ManagedDevice):
    """A device with everything that is known of it. `fleets` are in the order of their rank: the first one configures it."""

    running: tuple[RunningProduct, ...]
    attributes: tuple[Attribute, ...]
    certificates: tuple[DeviceCertificate, ...]
    fleets: tuple[str, ...]


class DevicesForm(PageForm):
    """Which devices: those that a selection selects (`where`), those of a fleet, or those behind the id `since`."""

    where: SelectionText | None = None
    fleet: VendorId | None = None
    since: Annotated[str, Field(max_length=64, pattern=r"^[!-~]*$")] = ""


class OneDevice(Form):
    """Which device."""

    device_id: AgentId


class ChangeDevice(Form):
    """What is to be known of a device; an empty text removes it. `zone` is an IANA time zone."""

    device_id: AgentId
    name: Name | None = None
    zone: Zone | None = None


class TagsForm(Form):
    """Which tags of which devices; each device once."""

    device_ids: DeviceIds
    tags: Annotated[list[Tag], Field(min_length=1, max_length=MAX_TAGS)]


class SetForm(Form):
    """Attributes of a device, by name."""

    device_id: AgentId
    attributes: Annotated[dict[AttributeName, AttributeValue], Field(min_length=1, max_length=MAX_ATTRIBUTES)]


class UnsetForm(Form):
    """Names of attributes of a device."""

    device_id: AgentId
    names: Annotated[list[AttributeName], Field(min_length=1, max_length=MAX_ATTRIBUTES)]


class DeviceCount(Form):
    """How many devices it was about."""

    count: Number


def list_devices(context: Context, body: DevicesForm) -> Listed[ManagedDevice]:
    """List devices by id: all of them, those that a selection selects, or those of a fleet."""
    session, among = context.session, []
    if body.where:
        among.append(selecting(session, parse(body.where)))
    if body.fleet is not None:
        among.append(membership.members(session, fleets.required(session, body.fleet)))
    rows = listing.listed(session, context.now, body.after or body.since, body.limit + 1, among)
    return page(rows, ManagedDevice, body.limit, lambda row: row.device_id)


def show(context: Context, body: OneDevice) -> DeviceDetails:
    """Show everything that is known of a device."""
    return _details(context, body.device_id)


def change(context: Context, body: ChangeDevice) -> DeviceDetails:
    """Change a device's name and time zone."""
    labels.change(context.session, body.device_id, body.name, body.zone, context.now)
    return _details(context, body.device_id)


def tag(context: Context, body: TagsForm) -> DeviceCount:
    """Give tags to devices: to all of them, or to none if one does not exist."""
    labels.tag(context.session, body.device_ids, body.tags, context.now)
    return DeviceCount(count=len(set(body.device_ids)))


def untag(context: Context, body: TagsForm) -> DeviceCount:
    """Take tags from devices: from all of them, or from none if one does not exist."""
    labels.untag(context.session, body.device_ids, body.tags, context.now)
    return DeviceCount(count=len(set(body.device_ids)))


def set_attributes(context: Context, body: SetForm) -> DeviceDetails:
    """Set attributes of a device, which the device itself cannot replace."""
    labels.put_attributes(context.session, body.device_id, body.attributes, context.now)
    return _details(context, body.device_id)


def unset_attributes(context: Context, body: UnsetForm) -> DeviceDetails:
    """Remove attributes of a device. What the device reports by itself comes again with its next report."""
    labels.unset_attributes(context.session, body.device_id, body.names, context.now)
    return _details(context, body.device_id)


def block(context: Context, body: OneDevice) -> DeviceDetails:
    """Block a device: the server refuses its requests from now on, also on connections that are open. Revokes an agent."""
    blocklist.block(context.session, context.server.agents, body.device_id, context.now)
    return _details(context, body.device_id)


def unblock(context: Context, body: OneDevice) -> DeviceDetails:
    """Take a device off the blocklist. An agent's certificates stay revoked: the device must be provisioned again."""
    blocklist.unblock(context.session, context.server.agents, body.device_id, context.now)
    return _details(context, body.device_id)


def present(context: Context, body: OneDevice | ChangeDevice | SetForm | UnsetForm) -> DeviceDetails:
    """The device, locked."""
    devices.required(context.session, body.device_id, lock=True)
    return _details(context, body.device_id)


def _details(context: Context, device_id: str) -> DeviceDetails:
    session = context.session
    session.flush()
    row = ManagedDevice.model_validate(listing.one(session, device_id, context.now)).model_dump()
    return DeviceDetails(
        **row,
        running=tuple(RunningProduct.model_validate(each) for each in listing.versions(session, device_id)),
        attributes=tuple(Attribute.model_validate(each) for each in listing.attributes(session, device_id)),
        certificates=tuple(
            DeviceCertificate.model_validate(each) for each in listing.certificates(session, device_id, context.now)
        ),
        fleets=tuple(each.id for each in membership.fleets_of(session, device_id)),
    )


_COLUMNS = (
    "device", "kind", "name", "hardware", "site", "zone", "status", "attestation", "last_contact", "connection",
    "certificate_ends", "certificate_days", "versions", "tags",
)  # fmt: skip
"""Of the list as CSV."""


def _iso(seconds: int | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _cells(row: ManagedDevice) -> tuple[object, ...]:
    versions = " ".join(f"{product}={version}" for product, version in row.versions.items())
    return (
        row.device_id, row.kind, row.name, row.hardware, row.site, row.zone, row.status, row.attestation,
        _iso(row.last_contact), row.connection, _iso(row.certificate_ends), row.certificate_days, versions, " ".join(row.tags),
    )  # fmt: skip


SHEET = Sheet(_COLUMNS, _cells)
_SECURITY = frozenset({Role.SECURITY_OFFICER})
_READ, _WRITE, _DEVICE = "devices:read", "devices:write", "/devices/{device_id}"

ACTS = (
    Act("devices.list", _READ, Role.VIEWER, DevicesForm, Listed[ManagedDevice], list_devices, "/devices", "GET", sheet=SHEET),
    Act("devices.show", _READ, Role.VIEWER, OneDevice, DeviceDetails, show, _DEVICE, "GET", etag=revision_tag),
    Act(
        "devices.change", _WRITE, Role.SUPPORT, ChangeDevice, DeviceDetails, change, _DEVICE, "PATCH",
        also=_SECURITY, present=present, etag=revision_tag, match_required=True,
    ),
    Act("devices.tag", _WRITE, Role.SUPPORT, TagsForm, DeviceCount, tag, "/devices/tag", also=_SECURITY),
    Act("devices.untag", _WRITE, Role.SUPPORT, TagsForm, DeviceCount, untag, "/devices/untag", also=_SECURITY),
    Act(
        "devices.set", _WRITE, Role.SUPPORT, SetForm, DeviceDetails, set_attributes, f"{_DEVICE}/attributes",
        also=_SECURITY, present=present, etag=revision_tag,
    ),
    Act(
        "devices.unset", _WRITE, Role.SUPPORT, UnsetForm, DeviceDetails, unset_attributes, f"{_DEVICE}/attributes/remove",
        also=_SECURITY, present=present, etag=revision_tag,
    ),
    Act("devices.block", _WRITE, Role.SECURITY_OFFICER, OneDevice, DeviceDetails, block, f"{_DEVICE}/block"),
    Act("devices.unblock", _WRITE, Role.SECURITY_OFFICER, OneDevice, DeviceDetails, unblock, f"{_DEVICE}/unblock"),
)  # fmt: skip
