"""Acts on fleets: make, change, delete, list, show, and who belongs to them."""

from typing import Annotated

from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, Number, PageForm, Time, VendorId, page, revision_tag
from server.fleet.devices import listing
from server.fleet.devices.labels import MAX_TAGS
from server.fleet.devices.selection import parse, selecting
from server.fleet.fleets import figures, fleets
from server.fleet.fleets.figures import Figures
from server.fleet.fleets.fleets import MAX_RANK, FleetRow, Wish

from .devices import DeviceIds, Name, SelectionText, Tag

SHOWN = 20
"""Devices that a preview names."""
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]


class Counts(Form):
    """Counts of a fleet's devices that are in service, as they were `at` that time, seconds since 1970 UTC. `connected` are
    those whose last contact is not too long ago; `certificate_days` are the days until their certificates end, on average.
    """

    at: Time
    devices: Number
    connected: Number
    certificate_days: float | None


class Fleet(Form):
    """A fleet; times are seconds since 1970 UTC. `static` is the number of devices that were put into it; `counts` is null
    before the first count.
    """

    fleet_id: str
    name: str
    tags: tuple[str, ...]
    selection: str | None
    rank: Number
    static: Number
    configuration: Number | None
    created_at: Time
    updated_at: Time
    revision: Number
    counts: Counts | None = None


class OneFleet(Form):
    """Which fleet."""

    fleet_id: VendorId


class FleetForm(Form):
    """What a fleet is to be. `selection` selects devices; without one, it has those that are put into it. A device in several
    fleets is configured by the one of the lowest `rank`; without one, the fleet comes behind all others.
    """

    fleet_id: VendorId
    name: Name | None = None
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)] | None = None
    selection: SelectionText | None = None
    rank: Rank | None = None


class ChangeFleet(FleetForm):
    """What is to be another of a fleet; an empty selection removes it."""


class MembersForm(Form):
    """Which devices of which fleet."""

    fleet_id: VendorId
    device_ids: DeviceIds


class FleetsForm(PageForm):
    """Which fleets."""

    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


class MatchForm(Form):
    """A selection."""

    selection: SelectionText


class Matched(Form):
    """What a selection selects now: how many devices, and the first of them by id."""

    count: Number
    devices: tuple[str, ...]


class MembersChanged(Form):
    """How many devices were put into a fleet, or taken out of it, that were not before."""

    count: Number


def list_fleets(context: Context, body: FleetsForm) -> Listed[Fleet]:
    """List fleets in the order of their rank."""
    rows = fleets.listed(context.session, body.after, body.limit + 1)
    found = page(rows, Fleet, body.limit, lambda row: str(row.rank))
    known = figures.known(context.session)
    return Listed(items=tuple(_counted(each, known) for each in found.items), after=found.after)


def show(context: Context, body: OneFleet) -> Fleet:
    """Show a fleet."""
    return _fleet(context, body.fleet_id)


def create(context: Context, body: FleetForm) -> Fleet:
    """Make a fleet."""
    fleets.create(context.session, body.fleet_id, _wish(body), context.now)
    return _fleet(context, body.fleet_id)


def change(context: Context, body: ChangeFleet) -> Fleet:
    """Change a fleet's name, tags, selection or rank."""
    fleets.change(context.session, body.fleet_id, _wish(body), context.now)
    return _fleet(context, body.fleet_id)


def delete(context: Context, body: OneFleet) -> Fleet:
    """Delete a fleet with its configurations. Its devices stay; a rollout of it must have ended."""
    found = _fleet(context, body.fleet_id)
    fleets.remove(context.session, body.fleet_id, context.now)
    return found


def add_members(context: Context, body: MembersForm) -> MembersChanged:
    """Put devices into a fleet: all of them, or none if one does not exist."""
    return MembersChanged(count=fleets.add_members(context.session, body.fleet_id, body.device_ids, context.now))


def remove_members(context: Context, body: MembersForm) -> MembersChanged:
    """Take devices out of a fleet that were put into it. Those that its selection selects stay in it."""
    return MembersChanged(count=fleets.remove_members(context.session, body.fleet_id, body.device_ids, context.now))


def match(context: Context, body: MatchForm) -> Matched:
    """Show which devices a selection selects, as a fleet with it would have them."""
    query = selecting(context.session, parse(body.selection))
    first = listing.ids(context.session, query, SHOWN)
    return Matched(count=listing.count(context.session, query), devices=tuple(first))


def present(context: Context, body: OneFleet | ChangeFleet) -> Fleet:
    """The fleet, locked."""
    fleets.required(context.session, body.fleet_id, lock=True)
    return _fleet(context, body.fleet_id)


def _wish(body: FleetForm) -> Wish:
    return Wish(body.name, None if body.tags is None else tuple(body.tags), body.selection, body.rank)


def _fleet(context: Context, fleet_id: str) -> Fleet:
    row: FleetRow = fleets.row_of(context.session, fleets.required(context.session, fleet_id))
    return _counted(Fleet.model_validate(row), figures.known(context.session))


def _counted(fleet: Fleet, known: Figures | None) -> Fleet:
    found = None if known is None else known.fleets.get(fleet.fleet_id)
    if known is None or found is None:
        return fleet
    average = found.certificates.average
    days = None if average is None else round(average, 1)
    counts = Counts(at=known.at, devices=found.total, connected=found.connected, certificate_days=days)
    return fleet.model_copy(update={"counts": counts})


_SECURITY = frozenset({Role.SECURITY_OFFICER})
_READ, _WRITE, _FLEET = "fleets:read", "fleets:write", "/fleets/{fleet_id}"

ACTS = (
    Act("fleets.list", _READ, Role.VIEWER, FleetsForm, Listed[Fleet], list_fleets, "/fleets", "GET"),
    Act("fleets.match", _READ, Role.VIEWER, MatchForm, Matched, match, "/fleet-matches", "GET"),
    Act("fleets.show", _READ, Role.VIEWER, OneFleet, Fleet, show, _FLEET, "GET", etag=revision_tag),
    Act("fleets.create", _WRITE, Role.SECURITY_OFFICER, FleetForm, Fleet, create, "/fleets", etag=revision_tag),
    Act(
        "fleets.change", _WRITE, Role.SECURITY_OFFICER, ChangeFleet, Fleet, change, _FLEET, "PATCH",
        present=present, etag=revision_tag, match_required=True,
    ),
    Act(
        "fleets.delete", _WRITE, Role.SECURITY_OFFICER, OneFleet, Fleet, delete, f"{_FLEET}/delete",
        present=present, etag=revision_tag,
    ),
    Act(
        "fleets.add_members", _WRITE, Role.SUPPORT, MembersForm, MembersChanged, add_members, f"{_FLEET}/members",
        also=_SECURITY,
    ),
    Act(
        "fleets.remove_members", _WRITE, Role.SUPPORT, MembersForm, MembersChanged, remove_members,
        f"{_FLEET}/members/remove", also=_SECURITY,
    ),
)  # fmt: skip
