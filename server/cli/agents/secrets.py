"""Commands for the agents' secrets."""

import time
from pathlib import Path
from typing import Any

import click

from common.text import quantity
from server.base.errors import NotFound
from server.cli.base.acting import asking, listed, perform
from server.cli.base.listing import limit_option, progress_bar, show_pages
from server.cli.base.options import (
    PAUSE_S,
    agent_option,
    directory_option,
    json_option,
    members,
    now,
    reading,
    utc,
    where_option,
    writing,
)
from server.cli.base.output import handing_out, out_option
from server.licensing.secrets import periods as secret_periods
from server.licensing.secrets.secret_states import State, shown_state


@click.group(invoke_without_command=True)
@where_option
@click.option("--agent", "agent_id", metavar="ID", help="The agent's id.")
@click.pass_context
def secrets(ctx: click.Context, directory: Path | None, agent_id: str | None) -> None:
    """List an agent's secret versions and their dates, never a secret. Without a command: list."""
    if ctx.invoked_subcommand is None:
        if agent_id is None:
            raise click.UsageError("Missing option '--agent'.")
        _list_secrets(directory, agent_id, False)


def _list_secrets(
    directory: Path | None, agent_id: str, as_json: bool, state: str | None = None, after: int = 0, limit: int | None = None
) -> None:
    moment = now()

    def line(row: Any) -> tuple[object, ...]:
        return (
            row.version,
            shown_state(row.state, row.grace_until, moment),
            utc(row.valid_from),
            utc(row.valid_until),
            utc(row.grace_until),
        )

    headers = ("version", "state", "valid from", "valid until", "grace until")
    pages = listed("secrets.list", directory, limit, agent_id=agent_id, state=state, since=after or None)
    show_pages(pages, headers, line, as_json, members)


@secrets.command("list")
@where_option
@agent_option
@click.option("--status", "state", type=click.Choice([each.value for each in State]), help="Only versions in this state.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="VERSION", help="Only versions behind this one.")
@limit_option
@json_option
def secrets_list(
    directory: Path | None, agent_id: str, state: str | None, after: int, limit: int | None, as_json: bool
) -> None:
    """List an agent's secret versions; never a secret."""
    _list_secrets(directory, agent_id, as_json, state, after, limit)


@secrets.command("rotate")
@where_option
@click.option("--agent", "agent_id", metavar="ID", help="This agent.")
@click.option("--all", "everyone", is_flag=True, help="All agents, 1000 at a time; the server may run.")
@click.option("--resume", is_flag=True, help="With --all: continue the run that was interrupted, instead of a new one.")
def secrets_rotate(directory: Path | None, agent_id: str | None, everyone: bool, resume: bool) -> None:
    """Make agents rotate their secrets at their next contact."""
    if (agent_id is None) != everyone:
        raise click.UsageError("Name one agent with --agent, or all with --all.")
    if resume and not everyone:
        raise click.UsageError("--resume belongs to --all.")
    if agent_id is None:
        count = _rotate_all(directory, resume)
    else:
        count = perform("secrets.rotate", directory, agent_id=agent_id).count
    click.echo(f"{count} agents will rotate at their next contact", err=True)


def _rotate_all(directory: Path | None, resume: bool) -> int:
    """Begins or resumes a run, and continues it to its end; each request makes some agents rotate."""
    with asking(directory) as server:
        found = server.perform("secrets.rotate_on" if resume else "secrets.rotate_all")
        if found.interrupted is not None:
            click.echo(
                f"an earlier run was interrupted after {found.interrupted} agents; this one begins with the first agent. "
                "--resume would have continued it",
                err=True,
            )
        with progress_bar("agents", found.agents) as reached:
            reached(found.count)
            while not found.ended:
                time.sleep(PAUSE_S)
                before = found
                try:
                    found = server.perform("secrets.rotate_on", run=found.run)
                except NotFound:
                    # A later run, or one that somebody else resumed, has reached every agent that was left.
                    click.echo(f"another run has overtaken this one after {quantity(before.count, 'agent')}", err=True)
                    break
                reached(found.count - before.count)
        count: int = found.count
        return count


@secrets.command("invalidate")
@where_option
@agent_option
@click.argument("version", type=click.IntRange(1))
def secrets_invalidate(directory: Path | None, agent_id: str, version: int) -> None:
    """Destroy an agent's secret VERSION on the server. The agent rotates at its next contact."""
    perform("secrets.invalidate", directory, agent_id=agent_id, version=version)


@click.command()
@directory_option
@agent_option
@click.option("--interval", type=click.IntRange(1, 10**9), help="Seconds until the next one is due.  [default: the server's]")
@click.option("--grace", type=click.IntRange(0, 10**9), help="Seconds of grace after that.  [default: the server's]")
@out_option
def rotate(directory: Path, agent_id: str, interval: int | None, grace: int | None, out: Path | None) -> None:
    """Make an agent's next secret and print its delivery, signed and encrypted to the agent, to be carried by hand."""
    with handing_out(out) as hand, writing(directory) as (server, session):
        hand(server.secrets.rotate_by_hand(session, agent_id, now(), interval, grace))


@click.command()
@directory_option
@click.option("--interval", type=click.IntRange(1, 10**9), help="Seconds until a secret's successor is due.")
@click.option("--grace", type=click.IntRange(0, 10**9), help="Seconds of grace after that.")
@click.option("--revocations", type=click.IntRange(1, 10**9), help="Seconds for which a revocation list is valid.")
def periods(directory: Path, interval: int | None, grace: int | None, revocations: int | None) -> None:
    """Show how long secrets and revocation lists are valid, or change it for those that are made from now on."""
    if any(value is not None for value in (interval, grace, revocations)):
        with writing(directory) as (_server, session):
            secret_periods.set_periods(session, interval, grace, now(), revocations)
    with reading(directory) as (_server, session):
        found, lists = secret_periods.periods(session), secret_periods.revocations_last(session)
    click.echo(f"a successor is due after {found[0]} s; licenses under the old one pass for {found[1]} s more")
    click.echo(f"a revocation list is valid for {lists} s")


COMMANDS: tuple[click.Command, ...] = (secrets, rotate, periods)
