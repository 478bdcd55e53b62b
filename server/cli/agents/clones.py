"""Commands for agents whose identity two machines use."""

from pathlib import Path
from typing import Any

import click

from common.text import quantity
from server.cli.base.acting import asking, listed
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import confirm, json_option, members, now, utc, where_option, yes_option


@click.group(invoke_without_command=True)
@where_option
@click.pass_context
def clones(ctx: click.Context, directory: Path | None) -> None:
    """List and decide agents that two machines have been. Without a command: list."""
    if ctx.invoked_subcommand is None:
        _list(directory, False)


def _list(directory: Path | None, as_json: bool, limit: int | None = None) -> None:
    moment = now()

    def line(row: Any) -> tuple[object, ...]:
        left = quantity(max(row.until - moment, 0) // 86_400, "day")
        return row.agent_id, utc(row.since), f"{utc(row.until)} ({left} left)", utc(row.last_seen), row.evidence

    headers = ("agent", "halted at", "licenses end at", "last contact", "because")
    count = show_pages(listed("clones.list", directory, limit), headers, line, as_json, members)
    if count and not as_json:
        click.echo("find the second machine and provision it again, then run 'license-server clones resume AGENT'", err=True)


@clones.command("list")
@where_option
@limit_option
@json_option
def clones_list(directory: Path | None, limit: int | None, as_json: bool) -> None:
    """List the agents whose rotations are halted, and why."""
    _list(directory, as_json, limit)


@clones.command("resume")
@where_option
@click.argument("agent_id")
@yes_option
def clones_resume(directory: Path | None, agent_id: str, yes: bool) -> None:
    """Let an agent rotate again, because only one machine has its identity now. It gets a new secret at its next contact."""
    with asking(directory) as server:
        found = server.perform("clones.show", agent_id=agent_id)
        if not yes:
            click.echo(f"{agent_id} is halted since {utc(found.since)}: {found.evidence}", err=True)
        confirm("Has the second machine been taken out of service or provisioned again?", yes=yes)
        server.perform("agents.resume", agent_id=agent_id)


COMMANDS: tuple[click.Command, ...] = (clones,)
