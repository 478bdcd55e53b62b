"""Acts on what fleets set on their agents: configure, look at it and its history, who does not follow, and what opens when."""

from typing import Annotated, Any

from pydantic import Field

from common.zones import UnknownZone
from contracts.contact.configuration import NAMES, Members, values_of
from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, Nothing, Number, PageForm, Time, VendorId, page
from server.base.errors import Conflict, NotFound
from server.fleet.configuration import drift, settings
from server.fleet.configuration import preview as previewing
from server.fleet.fleets.fleets import required
from server.registry.models.fleets import FleetConfiguration

MAX_DAYS = 60
Values = Annotated[dict[str, Any], Field(max_length=len(NAMES))]
"""Members by name, as `updates.notice_h`; the registry judges what they may be."""
MemberNames = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=len(NAMES))]


class ConfigureForm(Form):
    """What a fleet is to set. `members` replaces all that it sets now; `change` and `unset` change single members.

    With `expected`, the number that counts now must be that one; 0 for none.
    """

    fleet_id: VendorId
    members: Values | None = None
    change: Values = Field(default_factory=dict)
    unset: MemberNames = Field(default_factory=list)
    expected: Number | None = None


class ConfiguredFleet(Form):
    """Which fleet."""

    fleet_id: VendorId


class Configured(Form):
    """A configuration of a fleet. What a number says never changes."""

    fleet_id: str
    number: Number
    members: dict[str, Any]
    created_by: str
    created_at: Time


class Answers(Form):
    """How many agents were last sent a configuration, by their answers; `sent` have not answered."""

    sent: Number
    applied: Number
    limited: Number
    refused: Number


class Present(Configured):
    """The configuration of a fleet that counts, and how many agents have it."""

    agents: Answers


class HistoryForm(PageForm):
    """Which fleet, and which part of its history."""

    fleet_id: VendorId
    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


class DriftForm(PageForm):
    """Which fleet, and which part of the list."""

    fleet_id: VendorId


class Drifted(Form):
    """An agent of a fleet that does not have its configuration in force. Times are seconds since 1970 UTC.

    `state`: never (it has not asked), behind (it was last sent an earlier one, or none), other-fleet, sent (it has not
    answered), limited (its own file forbids or bounds something), refused. `fleet_id` and `number` are of what was last sent.
    """

    device_id: str
    state: str
    fleet_id: str | None
    number: Number
    detail: str
    sent_at: Time | None
    reported_at: Time | None


class OpensForm(Form):
    """Which fleet, and for how many days."""

    fleet_id: VendorId
    days: Annotated[int, Field(ge=1, le=MAX_DAYS)] = 14


class FleetOpening(Form):
    """A time in which installations may begin, seconds since 1970 UTC; `closes` is null if that is not within 400 days."""

    opens: Time
    closes: Time | None


class DeviceZone(Form):
    """A time zone of devices, how many they are, and why times cannot be shown in it."""

    zone: str
    devices: Number
    problem: str


class Opens(Form):
    """When the agents of a fleet may install. `zone` is that of the fleet's window; without a window, any time will do but for
    frozen days. A directive's own window and notice narrow this, and so may a machine's own file.
    """

    fleet_id: str
    number: Number
    zone: str
    window: bool
    openings: tuple[FleetOpening, ...]
    zones: tuple[DeviceZone, ...]


def _configured(row: FleetConfiguration) -> dict[str, Any]:
    names = ("fleet_id", "number", "created_by", "created_at")
    return {name: getattr(row, name) for name in names} | {"members": values_of(settings.members_of(row))}


def _present(context: Context, fleet_id: str) -> FleetConfiguration:
    row = settings.present(context.session, required(context.session, fleet_id))
    if row is None:
        raise NotFound(f"fleet {fleet_id!r} has no configuration; 'license-server fleets configure' gives it one")
    return row


def configure(context: Context, body: ConfigureForm) -> Configured:
    """Set what a fleet's agents go by. They get it at their next contacts; their own files bound it."""
    row = settings.configure(
        context.session, body.fleet_id, body.members, body.change, frozenset(body.unset), context.caller.account, context.now,
        body.expected,
    )  # fmt: skip
    return Configured(**_configured(row))


def end(context: Context, body: ConfiguredFleet) -> Nothing:
    """End what a fleet sets: its agents go by their files, or by their next fleet in rank."""
    settings.end(context.session, body.fleet_id, context.now)
    return Nothing()


def show(context: Context, body: ConfiguredFleet) -> Present:
    """Show what a fleet sets, and how many agents have it in force."""
    row = _present(context, body.fleet_id)
    counts = drift.counted(context.session, row.fleet_id, row.number)
    return Present(**_configured(row), agents=Answers(**counts))


def history(context: Context, body: HistoryForm) -> Listed[Configured]:
    """List the configurations of a fleet, the newest first."""
    before = int(body.after) if body.after else None
    rows = settings.history(context.session, body.fleet_id, before, body.limit + 1)
    items = tuple(Configured(**_configured(row)) for row in rows[: body.limit])
    return Listed(items=items, after=str(rows[body.limit - 1].number) if len(rows) > body.limit else None)


def drifted(context: Context, body: DriftForm) -> Listed[Drifted]:
    """List the agents of a fleet that do not have its configuration in force, and why."""
    rows = drift.drifted(context.session, body.fleet_id, body.after, body.limit + 1)
    return page(rows, Drifted, body.limit, lambda row: row.device_id)


def opens(context: Context, body: OpensForm) -> Opens:
    """Say when the agents of a fleet may install updates in the next days."""
    fleet = required(context.session, body.fleet_id)
    row = settings.present(context.session, fleet)
    set_ = Members() if row is None else settings.members_of(row)
    zones = previewing.zones_of(context.session, fleet)
    try:
        found = previewing.preview(set_, zones, context.now, body.days)
    except UnknownZone as problem:
        raise Conflict(f"this server cannot tell: 'zone' in updates.window {problem}") from None
    return Opens(
        fleet_id=fleet.id, number=0 if row is None else row.number, zone=found.zone, window=found.window,
        openings=tuple(FleetOpening.model_validate(each) for each in found.openings),
        zones=tuple(DeviceZone.model_validate(each) for each in found.zones),
    )  # fmt: skip


_READ, _WRITE, _HERE = "fleets:read", "fleets:write", "/fleets/{fleet_id}"
_ALL = f"{_HERE}/configurations"

ACTS = (
    Act("fleets.configure", _WRITE, Role.SECURITY_OFFICER, ConfigureForm, Configured, configure, f"{_HERE}/configuration"),
    Act(
        "fleets.end_configuration", _WRITE, Role.SECURITY_OFFICER, ConfiguredFleet, Nothing, end, f"{_HERE}/configuration/end"
    ),
    Act("fleets.configuration", _READ, Role.VIEWER, ConfiguredFleet, Present, show, f"{_HERE}/configuration", "GET"),
    Act("fleets.configurations", _READ, Role.VIEWER, HistoryForm, Listed[Configured], history, _ALL, "GET"),
    Act("fleets.drift", _READ, Role.VIEWER, DriftForm, Listed[Drifted], drifted, f"{_HERE}/drift", "GET"),
    Act("fleets.opens", _READ, Role.VIEWER, OpensForm, Opens, opens, f"{_HERE}/opens", "GET"),
)  # fmt: skip
