"""The command for the server's audit log."""

import sys
from pathlib import Path

import click
from sqlalchemy.orm import Session

from server.registry import audit as audit_log
from server.registry.audit import Record
from server.registry.paging import pages

from .listing import show_pages
from .options import directory_option, json_option, opened, reading, utc


@click.command()
@directory_option
@click.option("--verify", "check", is_flag=True, help="Verify the whole chain instead of printing records.")
@click.option(
    "-n", "--lines", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many of the newest records."
)
@json_option
def audit(directory: Path, check: bool, lines: int, as_json: bool) -> None:
    """Print the server's audit log, or verify that nobody has changed it."""

    def line(row: Record) -> tuple[object, ...]:
        return row.seq, utc(row.at), row.actor, row.event, row.outcome, ", ".join(f"{k}={v}" for k, v in row.fields.items())

    if not check:
        with opened(directory) as server:
            with server.database.read() as session:
                newest = audit_log.newest(session)

            def page(session: Session, last: Record | None, most: int) -> list[Record]:
                return audit_log.listed(session, newest - lines if last is None else last.seq, most)

            headers = ("record", "time", "who", "what", "outcome", "details")
            show_pages(pages(server.database, page, lines), headers, line, as_json)
        return
    with reading(directory) as (server, session):
        held, problem = audit_log.verify(session, server.cipher.audit_key())
        first = audit_log.first_kept(session)
    if problem is not None:
        click.echo(f"{held} records hold, then: {problem}", err=True)
        sys.exit(1)
    if first > 1:
        click.echo(f"records {first} to {held} hold; retention has removed the {first - 1} before them")
    else:
        click.echo(f"{held} records hold")


COMMANDS: tuple[click.Command, ...] = (audit,)
