"""The report of usage that agents have counted. It asks the server's operator API, or the server on this machine."""

import time as clock
from collections.abc import Iterator
from datetime import tzinfo
from pathlib import Path
from typing import Any

import click

from server.cli.base.acting import listed
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import TimeType, json_option, utc, where_option, zone_option
from server.licensing.lists.sheets import csv_lines
from server.registry.upkeep.retention import DAY_S

from .bulk import reports


def _day(number: int) -> str:
    return clock.strftime("%Y-%m-%d", clock.gmtime(number * DAY_S))


@reports.command("usage")
@where_option
@click.option("--from", "begin", type=TimeType(), metavar="TIME", help="Usage from the UTC day of this time on.")
@click.option("--until", "end", type=TimeType(), metavar="TIME", help="Usage of UTC days before the one of this time.")
@click.option("--license", "license_id", metavar="ID", help="Only of this license.")
@click.option("--meter", metavar="NAME", help="Only of this meter.")
@click.option("--agent", "agent_id", metavar="ID", help="Only what this agent has reported; not with --sum.")
@click.option("--customer", metavar="ID", help="Only of licenses of this customer.")
@click.option("--sum", "in_all", is_flag=True, help="Add the days and agents of each license and meter.")
@zone_option
@limit_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@json_option
def reports_usage(
    directory: Path | None,
    begin: int | None,
    end: int | None,
    license_id: str | None,
    meter: str | None,
    agent_id: str | None,
    customer: str | None,
    in_all: bool,
    zone: tzinfo,
    limit: int | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """List what was used, by the UTC day on which the server learned of it."""
    _ = zone
    if as_csv and as_json:
        raise click.UsageError("Give --csv or --json, not both.")
    if in_all and agent_id is not None:
        raise click.UsageError("--sum adds all agents: leave --agent out.")
    if begin is not None and end is not None and end // DAY_S <= begin // DAY_S:
        raise click.UsageError("--until must be of a later day than --from: its own day does not count.")

    def line(row: Any) -> tuple[object, ...]:
        if in_all:
            return row.license_id, row.meter, row.amount, _day(row.first_day), _day(row.last_day)
        return _day(row.day), row.license_id, row.meter, row.agent_id, row.amount, utc(row.since)

    def members(row: Any) -> dict[str, Any]:
        days = {name: _day(getattr(row, name)) for name in ("day", "first_day", "last_day") if hasattr(row, name)}
        return {**row.model_dump(mode="json"), **days}

    headers = ("day", "license", "meter", "agent", "amount", "not before")
    if in_all:
        headers = ("license", "meter", "amount", "first day", "last day")  # type: ignore[assignment]
    named = {"license_id": license_id, "meter": meter, "agent_id": agent_id, "customer": customer}
    days = {"begin": None if begin is None else begin // DAY_S, "end": None if end is None else end // DAY_S}
    pages: Iterator[list[Any]] = listed("reports.usage_sums" if in_all else "reports.usage", directory, limit, **named, **days)
    if not as_csv:
        show_pages(pages, headers, line, as_json, members)
        return
    click.echo(csv_lines([headers]), nl=False)
    for rows in pages:
        click.echo(csv_lines([[None if cell == "-" else cell for cell in line(row)] for row in rows]), nl=False)


COMMANDS: tuple[click.Command, ...] = (reports,)
