"""Commands for agents whose identity two machines use."""

from pathlib import Path

import click

from common.text import quantity
from server.agents.clones import Halt
from server.registry.paging import pages

from .listing import limit_option, show_pages
from .options import confirm, directory_option, json_option, now, opened, utc, writing, yes_option


@click.group(invoke_without_command=True)
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), envvar="LICENSE_SERVER_DIR")
@click.pass_context
def clones(ctx: click.Context, directory: Path | None) -> None:
    """List and decide agents that two machines have been. Without a command: list."""
    if ctx.invoked_subcommand is None:
        if directory is None:
            raise click.UsageError("Missing option '--dir' (or LICENSE_SERVER_DIR).")
        _list(directory, False)


def _list(directory: Path, as_json: bool, limit: int | None = None) -> None:
    moment = now()

    def line(row: Halt) -> tuple[object, ...]:
        left = quantity(max(row.until - moment, 0) // 86_400, "day")
        return row.agent_id, utc(row.since), f"{utc(row.until)} ({left} left)", utc(row.last_seen), row.evidence

    headers = ("agent", "halted at", "licenses end at", "last contact", "because")
    with opened(directory) as server:
        count = show_pages(pages(server.database, server.clones.halted, limit), headers, line, as_json)
    if count and not as_json:
        click.echo("find the second machine and provision it again, then run 'license-server clones resume AGENT'", err=True)


@clones.command("list")
@directory_option
@limit_option
@json_option
def clones_list(directory: Path, limit: int | None, as_json: bool) -> None:
    """List the agents whose rotations are halted, and why."""
    _list(directory, as_json, limit)


@clones.command("resume")
@directory_option
@click.argument("agent_id")
@yes_option
def clones_resume(directory: Path, agent_id: str, yes: bool) -> None:
    """Let an agent rotate again, because only one machine has its identity now. It gets a new secret at its next contact."""
    confirm("Has the second machine been taken out of service or provisioned again?", yes=yes)
    with writing(directory) as (server, session):
        server.clones.resume(session, agent_id, now())


COMMANDS: tuple[click.Command, ...] = (clones,)
