"""Commands for the server's own clock: show whether it is trusted, accept it."""

import json
import time
from functools import partial
from pathlib import Path

import click

from server.agents.misdated import correct
from server.cli.base.options import PAUSE_S, confirm, directory_option, json_option, now, opened, utc
from server.registry import audit


@click.group()
def clock() -> None:
    """Show whether the server's own clock is trusted, or accept it. While it is not, the server signs nothing."""


@clock.command("show")
@directory_option
@json_option
def clock_show(directory: Path, as_json: bool) -> None:
    """Show whether the clock is trusted, and why. Exit status 1 if it is not."""
    with opened(directory) as server:
        status = server.clock.status()
    if as_json:
        shown = {
            "trusted": status.finding.trusted,
            "finding": status.finding.value,
            "text": status.text,
            "synchronized": status.synchronized,
            "last_heartbeat": status.last,
            "time": now(),
        }
        click.echo(json.dumps(shown, indent=2))
    else:
        click.echo(f"clock:          {utc(now())}, {'trusted' if status.finding.trusted else 'NOT TRUSTED'}: {status.text}")
        click.echo(f"synchronized:   {'yes' if status.synchronized else 'no, or the kernel does not say'}")
        click.echo(f"last heartbeat: {utc(status.last)}")
    if not status.finding.trusted:
        click.get_current_context().exit(1)


@clock.command("accept")
@directory_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def clock_accept(directory: Path, yes: bool) -> None:
    """Accept the clock, because you know that it is right. Undoes what a clock that was ahead has left in the registry."""
    with opened(directory):
        pass  # asks nothing where there is no server
    confirm(f"This server's clock says {utc(now())}. Is that right?", yes=yes)
    with opened(directory) as server:
        found = correct(server.database, now(), partial(time.sleep, PAUSE_S))
        with server.database.write() as session:
            later = server.clock.accept(session)
            audit.record(
                session, "admin", "clock.accepted", "ok", now(), heartbeats=len(later), certificates=found.certificates,
                secrets=found.secrets, agents=found.agents,
            )  # fmt: skip
    click.echo(f"the clock is accepted: {utc(now())}; running processes go on within seconds", err=True)
    if later:
        click.echo(f"the clock was ahead before, until {utc(max(later))}; those heartbeats are deleted", err=True)
    if found.agents:
        click.echo(f"{found.agents} agents had times in the future; they are set to the present", err=True)
    if found.certificates or found.secrets:
        click.echo(
            f"{found.certificates} client certificates and {found.secrets} secrets are dated later than now; agents get "
            "new ones at their next contacts (release 0.1.0: when that time has come)",
            err=True,
        )
    for kind, kid in found.keys:
        click.echo(f"the {kind} key {kid} is dated later than now: run 'license-server keys rotate {kind}'", err=True)


COMMANDS = (clock,)
