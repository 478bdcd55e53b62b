"""The command for the feed of events."""

from pathlib import Path

import click
from sqlalchemy.orm import Session

from server.registry import events as feed
from server.registry.events import EventRow
from server.registry.paging import pages

from .listing import limit_option, show_pages
from .options import directory_option, json_option, opened, utc


@click.command()
@directory_option
@click.option("--after", type=click.IntRange(0), default=0, metavar="NUMBER", help="Only events behind this one.")
@click.option("--subject", metavar="ID", help="Only events of the license, agent or other thing with this id.")
@limit_option
@json_option
def events(directory: Path, after: int, subject: str | None, limit: int | None, as_json: bool) -> None:
    """List what has happened to licenses and agents, the oldest first. Numbers grow, with gaps."""

    def line(row: EventRow) -> tuple[object, ...]:
        return row.seq, utc(row.at), row.kind, row.subject, ", ".join(f"{name}={value}" for name, value in row.fields.items())

    def page(session: Session, last: EventRow | None, most: int) -> list[EventRow]:
        return feed.listed(session, after if last is None else last.seq, most, subject)

    with opened(directory) as server:
        show_pages(pages(server.database, page, limit), ("event", "time", "what", "of", "details"), line, as_json)


COMMANDS: tuple[click.Command, ...] = (events,)
