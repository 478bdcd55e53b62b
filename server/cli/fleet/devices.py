"""Commands for devices."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from common.text import quantity, shown
from server.cli.base.acting import asking, listed, perform
from server.cli.base.listing import limit_option, show_one, show_pages
from server.cli.base.options import confirm, json_option, members, pairs, reason_option, utc, where_option, yes_option
from server.licensing.lists.sheets import csv_lines

_LISTED = 8
"""Tags that a row of the table has."""


@click.group()
def devices() -> None:
    """List and label devices, and block those that are compromised. Each agent is a device."""


@devices.command("list")
@where_option
@click.option("--where", metavar="SELECTION", help="Only devices that this selects, such as 'tag=beta and pos.version<2.1'.")
@click.option("--fleet", metavar="ID", help="Only devices of this fleet.")
@click.option("--after", default="", metavar="ID", help="Only devices behind this one.")
@limit_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@json_option
def devices_list(
    directory: Path | None, where: str | None, fleet: str | None, after: str, limit: int | None, as_csv: bool, as_json: bool
) -> None:
    """List devices by id: all of them, or those that the options name."""
    if as_csv and as_json:
        raise click.UsageError("Give --csv or --json, not both.")
    headers = ("device", "kind", "status", "last contact", "connection", "hardware", "site", "runs", "days left", "tags")
    pages = listed("devices.list", directory, limit, where=where, fleet=fleet, since=after or None)
    if as_csv:
        from server.acts.fleet.devices import SHEET

        click.echo(csv_lines([SHEET.columns]), nl=False)
        for rows in pages:
            click.echo(csv_lines([SHEET.cells(row) for row in rows]), nl=False)
        return
    show_pages(pages, headers, _line, as_json, members)


def _line(row: Any) -> tuple[object, ...]:
    runs = ", ".join(f"{product} {version}" for product, version in row.versions.items())
    tags = ", ".join(row.tags[:_LISTED]) + (", …" if len(row.tags) > _LISTED else "")
    days = "-" if row.certificate_days is None else str(row.certificate_days)
    contact = utc(row.last_contact), row.connection
    return row.device_id, row.kind, row.status, *contact, row.hardware or "-", row.site or "-", runs or "-", days, tags or "-"


@devices.command("show")
@where_option
@click.argument("device_id", metavar="ID")
@json_option
def devices_show(directory: Path | None, device_id: str, as_json: bool) -> None:
    """Print everything that is known of a device."""
    _show(perform("devices.show", directory, device_id=device_id), as_json)


def _show(row: Any, as_json: bool) -> None:
    if as_json:
        show_one(row, as_json)
        return
    lines = [f"{name + ':':<14}{value}" for name, value in _facts(row)]
    click.echo(shown("\n".join(lines)))


def _facts(row: Any) -> Iterator[tuple[str, object]]:
    yield "device", row.device_id
    yield "name", row.name or "-"
    yield "kind", row.kind
    yield "status", row.status
    yield "hardware", row.hardware or "-"
    yield "site", row.site or "-"
    yield "zone", row.zone or "-"
    yield "last contact", utc(row.last_contact)
    yield "connection", row.connection
    if row.attestation is not None:
        yield "attestation", row.attestation
    for each in row.running:
        yield "runs", f"{each.product} {each.version}, build {each.build_id}, reported since {utc(each.reported_at)}"
    if not row.running:
        yield "runs", "-"
    for each in row.certificates:
        left = f"in {quantity(each.days, 'day')}" if each.days >= 0 else "it has ended"
        used = "in use" if each.in_use else "not used yet"
        yield "certificate", f"{each.number}, {used}, ends {utc(each.not_after)} ({left})"
    if not row.certificates:
        yield "certificate", "-"
    yield "fleets", ", ".join(row.fleets) or "-"
    yield "tags", ", ".join(row.tags) or "-"
    for each in row.attributes:
        yield "attribute", f"{each.name}={each.value}, from the {each.source}"
    yield "registered", utc(row.created_at)
    yield "changed", utc(row.updated_at)


@devices.command("change")
@where_option
@click.argument("device_id", metavar="ID")
@click.option("--name", metavar="TEXT", help="A name for people.")
@click.option("--zone", metavar="NAME", help="Its time zone, such as Europe/Berlin.")
@reason_option
@json_option
def devices_change(
    directory: Path | None, device_id: str, name: str | None, zone: str | None, reason: str, as_json: bool
) -> None:
    """Change a device's name or time zone; an empty text removes it."""
    if name is None and zone is None:
        raise click.UsageError("Nothing to change: give --name or --zone.")
    with asking(directory) as server:
        found = server.perform("devices.show", device_id=device_id)
        tag = server.tag("devices.show", found)
        _show(server.perform("devices.change", device_id=device_id, name=name, zone=zone, if_match=tag), as_json)


@devices.command("tag")
@where_option
@click.argument("tag")
@click.argument("device_ids", metavar="ID...", nargs=-1, required=True)
@reason_option
def devices_tag(directory: Path | None, tag: str, device_ids: tuple[str, ...], reason: str) -> None:
    """Give devices a TAG: all of them, or none if one does not exist."""
    done = perform("devices.tag", directory, device_ids=list(device_ids), tags=[tag])
    click.echo(f"{quantity(done.count, 'device')} with the tag {tag}", err=True)


@devices.command("untag")
@where_option
@click.argument("tag")
@click.argument("device_ids", metavar="ID...", nargs=-1, required=True)
@reason_option
def devices_untag(directory: Path | None, tag: str, device_ids: tuple[str, ...], reason: str) -> None:
    """Take a TAG from devices: from all of them, or from none if one does not exist."""
    done = perform("devices.untag", directory, device_ids=list(device_ids), tags=[tag])
    click.echo(f"{quantity(done.count, 'device')} without the tag {tag}", err=True)


@devices.command("set")
@where_option
@click.argument("device_id", metavar="ID")
@click.argument("attributes", metavar="NAME=VALUE...", nargs=-1, required=True, callback=pairs)
@reason_option
@json_option
def devices_set(directory: Path | None, device_id: str, attributes: dict[str, str], reason: str, as_json: bool) -> None:
    """Set attributes of a device, which the device itself cannot replace."""
    _show(perform("devices.set", directory, device_id=device_id, attributes=attributes), as_json)


@devices.command("unset")
@where_option
@click.argument("device_id", metavar="ID")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@reason_option
@json_option
def devices_unset(directory: Path | None, device_id: str, names: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Remove attributes of a device. What the device reports by itself comes again with its next report."""
    _show(perform("devices.unset", directory, device_id=device_id, names=list(names)), as_json)


@devices.command("block")
@where_option
@click.argument("device_id", metavar="ID")
@reason_option
def devices_block(directory: Path | None, device_id: str, reason: str) -> None:
    """Block a device: the server refuses its requests from now on, also on connections that are open.

    An agent is revoked by that, as with 'agents revoke': its certificates are revoked, and it gets no secrets or licenses.
    """
    row = perform("devices.block", directory, device_id=device_id)
    click.echo(f"{device_id} is {row.status}", err=True)


@devices.command("unblock")
@where_option
@click.argument("device_id", metavar="ID")
@yes_option
@reason_option
def devices_unblock(directory: Path | None, device_id: str, yes: bool, reason: str) -> None:
    """Take a device off the blocklist. An agent's certificates stay revoked: provision the device again."""
    with asking(directory) as server:
        found = server.perform("devices.show", device_id=device_id)
        if found.status == "active":
            click.echo(f"{device_id} is active already", err=True)
            return
        confirm(f"{device_id} is {found.status}. The device will be able to use the server again. Continue?", yes=yes)
        row = server.perform("devices.unblock", device_id=device_id)
    again = "; provision it again, for its certificates stay revoked" if row.kind == "agent" else ""
    click.echo(f"{device_id} is {row.status}{again}", err=True)


COMMANDS: tuple[click.Command, ...] = (devices,)
