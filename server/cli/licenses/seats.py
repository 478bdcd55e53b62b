"""Commands for floating licenses and their seats."""

import sys
from pathlib import Path
from typing import Any

import click

from common.text import shown
from server.cli.base.acting import listed, perform
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import DurationType, confirm, json_option, utc, where_option, yes_option
from server.licensing.lists import sheets
from server.licensing.sales.seats import Mode, Terms

_TERMS = Terms(1)


def _members(row: Any) -> dict[str, Any]:
    found: dict[str, Any] = row.model_dump(mode="json")
    return found


def _hours(seconds: int) -> str:
    return f"{seconds / 3600:g}h"


@click.group()
def seats() -> None:
    """Share licenses among the tills of a site: floating licenses, and their seats."""


@seats.command("set")
@where_option
@click.argument("license_id")
@click.option("--seats", "count", type=click.IntRange(1), required=True, metavar="N", help="Tills that may have one at once.")
@click.option(
    "--mode", type=click.Choice([mode.value for mode in Mode]), default=_TERMS.mode.value, show_default=True,
    help="With hard, one more till gets none; with soft, it gets one and the server records over-use.",
)  # fmt: skip
@click.option("--lease", type=DurationType(), default="4h", show_default=True, help="A till renews its seat then.")
@click.option("--grace", type=DurationType(), default="3d", show_default=True, help="How long a till works offline, at least.")
@click.option("--idle", type=DurationType(), default="12h", show_default=True, help="A till gives an unused seat back then.")
@json_option
def seats_set(
    directory: Path | None, license_id: str, count: int, mode: str, lease: int, grace: int, idle: int, as_json: bool
) -> None:
    """Make LICENSE_ID a floating license of its site, or change its terms. It must be on no machine."""
    terms = {"seats": count, "mode": mode, "lease": lease, "grace": grace, "idle": idle}
    row = perform("seats.set", directory, license_id=license_id, **terms)
    if as_json:
        click.echo(row.model_dump_json(indent=2))
        return
    click.echo(f"{row.license_id}: {row.taken} of {row.seats} seats taken at site {row.site}, mode {row.mode}", err=True)


_HEADERS = ("license", "site", "state", "seats", "taken", "over", "mode", "lease", "grace", "idle", "valid until")


def _line(row: Any) -> tuple[object, ...]:
    times = _hours(row.lease), _hours(row.grace), _hours(row.idle), utc(row.expires)
    return row.license_id, row.site or "-", row.state, row.seats, row.taken, row.over, row.mode, *times


@seats.command("list")
@where_option
@click.option("--site", metavar="ID", help="Only those of this site.")
@limit_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@json_option
def seats_list(directory: Path | None, site: str | None, limit: int | None, as_csv: bool, as_json: bool) -> None:
    """List floating licenses, with how many of their seats are taken: a report of use and over-use."""
    if as_csv and as_json:
        raise click.UsageError("Give --csv or --json, not both.")
    found = listed("seats.list", directory, limit, site=site)
    if not as_csv:
        show_pages(found, _HEADERS, _line, as_json, _members)
        return
    sys.stdout.write(sheets.csv_lines([_HEADERS]))
    for rows in found:
        sys.stdout.write(sheets.csv_lines([_line(row) for row in rows]))


@seats.command("show")
@where_option
@click.argument("license_id")
@limit_option
@json_option
def seats_show(directory: Path | None, license_id: str, limit: int | None, as_json: bool) -> None:
    """List the seats of LICENSE_ID that count: of which till, and until when."""

    def line(row: Any) -> tuple[object, ...]:
        times = utc(row.taken_at), utc(row.lease_until), utc(row.grace_until)
        return row.seat, row.agent_id, *times, "yes" if row.over else "no"

    headers = ("seat", "agent", "taken at", "renewed from", "valid until", "over-use")
    show_pages(listed("seats.show", directory, limit, license_id=license_id), headers, line, as_json, _members)


@seats.command("free")
@where_option
@click.argument("seat")
@yes_option
def seats_free(directory: Path | None, seat: str, yes: bool) -> None:
    """Free SEAT at once, of a machine that is out of use for certain: destroyed, or erased."""
    confirm("If its machine still works, one till more than there are seats can work. Continue?", yes=yes)
    row = perform("seats.free", directory, seat=seat)
    click.echo(shown(f"freed seat {row.seat} of agent {row.agent_id}; its token ends at {utc(row.grace_until)}"), err=True)


COMMANDS: tuple[click.Command, ...] = (seats,)
