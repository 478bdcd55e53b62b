"""Commands for what fleets set on their agents; they belong to the group `fleets`."""

import json
import zoneinfo
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import click
import msgspec
from tabulate import tabulate

from common.text import shown
from contracts.contact.configuration import BOUNDS, NAMES
from server.cli.base.acting import listed, perform
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import confirm, json_option, members, reason_option, utc, where_option, yes_option
from server.ota.windows import parse_window

MAX_FILE_BYTES = 64 * 1024
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _value(name: str, text: str) -> Any:
    """What `--set NAME=TEXT` means: a window as 'mon-fri 22:00-05:00 ZONE', days with commas between them, numbers, words."""
    if name == "updates.window" and not text.startswith("{"):
        return msgspec.to_builtins(parse_window(text))
    if name == "updates.freeze" and not text.startswith("["):
        return [each.strip() for each in text.split(",") if each.strip()]
    if name in BOUNDS:
        return int(text)
    return json.loads(text) if text[:1] in ("{", "[") else text


def _settings(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in values:
        name, equals, text = each.partition("=")
        if not equals or name not in NAMES:
            raise click.BadParameter(f"{each!r} must be NAME=VALUE; the names are {', '.join(NAMES)}")
        try:
            found[name] = _value(name, text.strip())
        except ValueError as problem:
            raise click.BadParameter(f"{name}: {problem}") from None
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MAX_FILE_BYTES))
    except (ValueError, RecursionError):
        raise click.BadParameter(
            f"{path} is not JSON; 'license-server fleets configuration F --json' prints an example"
        ) from None
    content = content.get("members", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise click.BadParameter(f'{path} must have an object such as {{"updates.notice_h": 48}}')
    return content


@click.command("configure")
@where_option
@click.argument("fleet", metavar="FLEET")
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="All that it sets, as JSON.")
@click.option(
    "--set", "change", multiple=True, callback=_settings, metavar="NAME=VALUE", help="Set one value; may be repeated."
)
@click.option("--unset", multiple=True, metavar="NAME", help="Leave it to the machines' files; may be repeated.")
@click.option("--expect", type=click.IntRange(0), metavar="N", help="Only if configuration N counts now; 0 for none.")
@click.option("--end", is_flag=True, help="Set nothing any more: the next fleet in rank configures, or the machines' files.")
@yes_option
@reason_option
@json_option
def configure(
    directory: Path | None,
    fleet: str,
    file: Path | None,
    change: dict[str, Any],
    unset: tuple[str, ...],
    expect: int | None,
    end: bool,
    yes: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Set what the agents of FLEET go by, such as '--set updates.notice_h=24'. They get it at their next contacts."""
    if end:
        if file is not None or change or unset or expect is not None:
            raise click.UsageError("--end goes with none of --file, --set, --unset and --expect.")
        confirm(f"Fleet {fleet} will set nothing any more. Continue?", yes=yes)
        perform("fleets.end_configuration", directory, fleet_id=fleet)
        click.echo(shown(f"fleet {fleet} sets nothing any more"), err=True)
        return
    if file is None and not change and not unset:
        raise click.UsageError("Nothing to set: give --file, --set or --unset, or --end.")
    whole = None if file is None else _read(file)
    row = perform(
        "fleets.configure", directory, fleet_id=fleet, members=whole, change=change, unset=list(unset), expected=expect
    )
    if as_json:
        click.echo(row.model_dump_json(indent=2))
        return
    click.echo(
        shown(f"fleet {fleet} has configuration {row.number}; 'fleets drift {fleet}' shows who has not applied it"), err=True
    )


def _text(name: str, value: Any) -> str:
    if name == "updates.window":
        days = "daily" if len(value["days"]) == len(_DAYS) else ",".join(value["days"])
        return f"{days} {value['start']}-{value['end']} {value['zone']}"
    return ", ".join(value) if isinstance(value, list) else str(value)


@click.command("configuration")
@where_option
@click.argument("fleet", metavar="FLEET")
@click.option("--history", is_flag=True, help="List all configurations that it had, the newest first.")
@limit_option
@json_option
def configuration(directory: Path | None, fleet: str, history: bool, limit: int | None, as_json: bool) -> None:
    """Print what FLEET sets, and how many agents have it in force."""
    if history:

        def line(row: Any) -> tuple[object, ...]:
            sets = "; ".join(f"{name}={_text(name, value)}" for name, value in row.members.items())
            return row.number, utc(row.created_at), row.created_by, sets or "-"

        headers = ("number", "made", "by", "sets")
        show_pages(listed("fleets.configurations", directory, limit, fleet_id=fleet), headers, line, as_json, members)
        return
    row = perform("fleets.configuration", directory, fleet_id=fleet)
    if as_json:
        click.echo(row.model_dump_json(indent=2))
        return
    click.echo(shown(f"configuration {row.number} of fleet {fleet}, made {utc(row.created_at)} by {row.created_by}"))
    if row.members:
        click.echo(shown(tabulate([(name, _text(name, value)) for name, value in row.members.items()], tablefmt="plain")))
    counts = row.agents
    click.echo(
        f"agents: {counts.applied} applied, {counts.limited} limited, {counts.refused} refused, {counts.sent} not answered"
    )


@click.command("drift")
@where_option
@click.argument("fleet", metavar="FLEET")
@limit_option
@json_option
def drift(directory: Path | None, fleet: str, limit: int | None, as_json: bool) -> None:
    """List the agents of FLEET that do not have its configuration in force, and why."""

    def line(row: Any) -> tuple[object, ...]:
        sent = "-" if row.fleet_id is None else f"{row.fleet_id} {row.number}"
        return row.device_id, row.state, sent, utc(row.sent_at), utc(row.reported_at), row.detail

    headers = ("agent", "state", "was sent", "at", "answered", "detail")
    show_pages(listed("fleets.drift", directory, limit, fleet_id=fleet), headers, line, as_json, members)


def _zone(name: str) -> tzinfo | None:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _wall(moment: int | None, zone: tzinfo) -> str:
    return "-" if moment is None else f"{datetime.fromtimestamp(moment, zone):%a %Y-%m-%d %H:%M %z}"


@click.command("opens")
@where_option
@click.argument("fleet", metavar="FLEET")
@click.option("--days", type=click.IntRange(1, 60), default=14, show_default=True, metavar="N", help="How far ahead.")
@json_option
def opens(directory: Path | None, fleet: str, days: int, as_json: bool) -> None:
    """Print when the agents of FLEET may install updates, in the zone of the window and in those of its devices."""
    found = perform("fleets.opens", directory, fleet_id=fleet, days=days)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    if not found.window:
        click.echo("the fleet sets no window: any time will do, but for frozen days (UTC)")
    shown_zones = {found.zone: _zone(found.zone)} | {each.zone: _zone(each.zone) for each in found.zones if not each.problem}
    for name, zone in shown_zones.items():
        if zone is None:
            click.echo(shown(f"NOTE: this machine does not know the time zone {name}"), err=True)
            continue
        number = next((each.devices for each in found.zones if each.zone == name), 0)
        click.echo(shown(f"{name} ({number} devices)"))
        rows = [(_wall(each.opens, zone), _wall(each.closes, zone)) for each in found.openings]
        click.echo(shown(tabulate(rows, headers=("opens", "closes"), disable_numparse=True)))
    if not found.openings:
        click.echo(f"nothing opens within {days} days", err=True)
    for each in found.zones:
        if each.problem:
            click.echo(shown(f"NOTE: {each.devices} devices: {each.problem}"), err=True)


COMMANDS: tuple[click.Command, ...] = (configure, configuration, drift, opens)
