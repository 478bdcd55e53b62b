"""The command for the feed of events."""

from pathlib import Path
from typing import Any

import click

from server.cli.base.acting import listed
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import json_option, members, utc, where_option


@click.command()
@where_option
@click.option("--after", type=click.IntRange(0), default=0, metavar="NUMBER", help="Only events behind this one.")
@click.option("--subject", metavar="ID", help="Only events of the license, agent or other thing with this id.")
@limit_option
@json_option
def events(directory: Path | None, after: int, subject: str | None, limit: int | None, as_json: bool) -> None:
    """List what has happened to licenses and agents, the oldest first. Numbers grow, with gaps."""

    def line(row: Any) -> tuple[object, ...]:
        return row.seq, utc(row.at), row.kind, row.subject, ", ".join(f"{name}={value}" for name, value in row.fields.items())

    pages = listed("events.list", directory, limit, since=after or None, subject=subject)
    show_pages(pages, ("event", "time", "what", "of", "details"), line, as_json, members)


COMMANDS: tuple[click.Command, ...] = (events,)
