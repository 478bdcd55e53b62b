"""The command for the server's audit log."""

import sys
from pathlib import Path
from typing import Any

import click

from server.cli.base.acting import listed, local_directory
from server.cli.base.listing import show_pages
from server.cli.base.options import json_option, members, reading, utc, where_option
from server.registry import audit as audit_log


@click.command()
@where_option
@click.option("--verify", "check", is_flag=True, help="Verify the whole chain instead of printing records; not with --server.")
@click.option(
    "-n", "--lines", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many of the newest records."
)
@json_option
def audit(directory: Path | None, check: bool, lines: int, as_json: bool) -> None:
    """Print the server's audit log, or verify that nobody has changed it."""

    def line(row: Any) -> tuple[object, ...]:
        return row.seq, utc(row.at), row.actor, row.event, row.outcome, ", ".join(f"{k}={v}" for k, v in row.fields.items())

    if not check:
        headers = ("record", "time", "who", "what", "outcome", "details")
        show_pages(listed("audit.list", directory, lines, newest=lines), headers, line, as_json, members)
        return
    # Who asks the server whether its log is whole learns nothing: it is verified with the key, on its machine.
    with reading(local_directory(directory, "--verify")) as (server, session):
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
