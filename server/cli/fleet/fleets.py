"""Commands for fleets."""

from pathlib import Path
from typing import Any

import click

from common.text import quantity, shown
from server.cli.base.acting import asking, listed, perform
from server.cli.base.listing import limit_option, show_one, show_pages
from server.cli.base.options import confirm, json_option, members, reason_option, utc, where_option, yes_option

from . import certificates, configuration, monitoring


@click.group()
def fleets() -> None:
    """Put devices together in fleets: by name, or by what is known of them."""


def _options(command: Any) -> Any:
    for option in (
        click.option("--rank", type=click.IntRange(1), metavar="N", help="Of several fleets of a device, the lowest counts."),
        click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag of the fleet itself; may be repeated."),
        click.option("--where", "selection", metavar="SELECTION", help="Devices that belong to it, such as 'tag=beta'."),
        click.option("--name", metavar="TEXT", help="A name for people.  [default: the id]"),
    ):
        command = option(command)
    return command


@fleets.command("add")
@where_option
@click.argument("fleet_id", metavar="ID")
@_options
@reason_option
@json_option
def fleets_add(
    directory: Path | None,
    fleet_id: str,
    name: str | None,
    selection: str | None,
    tags: tuple[str, ...],
    rank: int | None,
    reason: str,
    as_json: bool,
) -> None:
    """Make the fleet ID. Without --where it has those devices that are put into it; 'fleets match' tries a selection."""
    row = perform("fleets.create", directory, fleet_id=fleet_id, name=name, selection=selection, tags=list(tags), rank=rank)
    _show(row, as_json)


@fleets.command("change")
@where_option
@click.argument("fleet_id", metavar="ID")
@_options
@reason_option
@json_option
def fleets_change(
    directory: Path | None,
    fleet_id: str,
    name: str | None,
    selection: str | None,
    tags: tuple[str, ...],
    rank: int | None,
    reason: str,
    as_json: bool,
) -> None:
    """Change what is given of a fleet. An empty --where removes its selection; tags replace the former ones."""
    wish: dict[str, Any] = {"name": name, "selection": selection, "tags": list(tags) or None, "rank": rank}
    if all(value is None for value in wish.values()):
        raise click.UsageError("Nothing to change: give --name, --where, --tag or --rank.")
    with asking(directory) as server:
        found = server.perform("fleets.show", fleet_id=fleet_id)
        tag = server.tag("fleets.show", found)
        _show(server.perform("fleets.change", fleet_id=fleet_id, if_match=tag, **wish), as_json)


@fleets.command("delete")
@where_option
@click.argument("fleet_id", metavar="ID")
@yes_option
@reason_option
def fleets_delete(directory: Path | None, fleet_id: str, yes: bool, reason: str) -> None:
    """Delete a fleet with its configurations. Its devices stay; a rollout of it must have ended."""
    with asking(directory) as server:
        found = server.perform("fleets.show", fleet_id=fleet_id)
        confirm(f"Fleet {fleet_id} and its configurations go for good. Continue?", yes=yes)
        server.perform("fleets.delete", fleet_id=fleet_id, if_match=server.tag("fleets.show", found))
    click.echo(f"deleted fleet {fleet_id}", err=True)


@fleets.command("list")
@where_option
@limit_option
@json_option
def fleets_list(directory: Path | None, limit: int | None, as_json: bool) -> None:
    """List fleets in the order of their rank. Devices are counted every few minutes."""

    def line(row: Any) -> tuple[object, ...]:
        counts = row.counts
        counted = ("-", "-", "-") if counts is None else (str(counts.devices), str(counts.connected), _days(counts))
        return row.rank, row.fleet_id, row.name, row.selection or "-", row.static, *counted

    headers = ("rank", "fleet", "name", "selection", "put in", "devices", "connected", "certificate days")
    show_pages(listed("fleets.list", directory, limit), headers, line, as_json, members)


@fleets.command("show")
@where_option
@click.argument("fleet_id", metavar="ID")
@json_option
def fleets_show(directory: Path | None, fleet_id: str, as_json: bool) -> None:
    """Print a fleet. 'devices list --fleet ID' lists its devices."""
    _show(perform("fleets.show", directory, fleet_id=fleet_id), as_json)


def _days(counts: Any) -> str:
    return "-" if counts.certificate_days is None else f"{counts.certificate_days:g}"


def _show(row: Any, as_json: bool) -> None:
    if as_json:
        show_one(row, as_json)
        return
    facts: list[tuple[str, object]] = [
        ("fleet", row.fleet_id),
        ("name", row.name),
        ("rank", row.rank),
        ("tags", ", ".join(row.tags) or "-"),
        ("selection", row.selection or "-"),
        ("put in", quantity(row.static, "device")),
        ("configuration", "-" if row.configuration is None else row.configuration),
    ]
    if row.counts is not None:
        seen = f"{row.counts.connected} connected, at {utc(row.counts.at)}"
        facts.append(("devices", f"{row.counts.devices}, {seen}"))
        facts.append(("certificates", f"end in {_days(row.counts)} days on average"))
    facts += [("made", utc(row.created_at)), ("changed", utc(row.updated_at))]
    click.echo(shown("\n".join(f"{name + ':':<15}{value}" for name, value in facts)))


@fleets.command("match")
@where_option
@click.argument("selection")
@json_option
def fleets_match(directory: Path | None, selection: str, as_json: bool) -> None:
    """Print how many devices SELECTION selects now, and the first of them: who would be in a fleet with it."""
    found = perform("fleets.match", directory, selection=selection)
    if as_json:
        show_one(found, as_json)
        return
    for each in found.devices:
        click.echo(shown(each))
    more = found.count - len(found.devices)
    click.echo(quantity(found.count, "device") + (f", {more} of them not shown" if more else ""), err=True)


@fleets.group("members")
def fleet_members() -> None:
    """Put devices into a fleet by their ids, and take them out again."""


@fleet_members.command("add")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@click.argument("device_ids", metavar="ID...", nargs=-1, required=True)
@reason_option
def members_add(directory: Path | None, fleet_id: str, device_ids: tuple[str, ...], reason: str) -> None:
    """Put devices into FLEET: all of them, or none if one does not exist."""
    done = perform("fleets.add_members", directory, fleet_id=fleet_id, device_ids=list(device_ids))
    click.echo(f"put {quantity(done.count, 'device')} into {fleet_id}", err=True)


@fleet_members.command("remove")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@click.argument("device_ids", metavar="ID...", nargs=-1, required=True)
@reason_option
def members_remove(directory: Path | None, fleet_id: str, device_ids: tuple[str, ...], reason: str) -> None:
    """Take devices out of FLEET that were put into it. Those that its selection selects stay in it."""
    done = perform("fleets.remove_members", directory, fleet_id=fleet_id, device_ids=list(device_ids))
    click.echo(f"took {quantity(done.count, 'device')} out of {fleet_id}", err=True)


for _command in (*configuration.COMMANDS, *certificates.COMMANDS, *monitoring.COMMANDS):
    fleets.add_command(_command)

COMMANDS: tuple[click.Command, ...] = (fleets,)
