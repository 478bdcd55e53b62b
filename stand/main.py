"""Defines `license-stand`: `up` starts a stand, every other command acts on a running one."""

import os
import sys
from pathlib import Path

import click

from common.files import os_problem
from common.version import VERSION
from ipc.answers import Reason

from . import acts, reasons, setup
from .fleetcommand import fleet
from .options import Program, directory_option, running
from .otacommands import ota
from .programs import StandError
from .running import Plan, Stand
from .setup import ROOT_STANDS_IN_UID, Layout

_RAISED_LIMITS = {"rate_per_s": 1_000_000, "nonces_per_uid": 4_000_000, "connections_per_uid": 200}


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="license-stand", message="%(prog)s %(version)s")
def main() -> None:
    """Run a complete local license system in one directory."""


@main.command()
@directory_option
@click.option(
    "--backend", type=click.Choice(["tpm", "software"]), default="tpm", show_default=True, help="How secrets are kept."
)
@click.option(
    "--agent-uid", type=click.IntRange(1, 65533), help=f"As root: whom the agent runs as (default {ROOT_STANDS_IN_UID})."
)
@click.option("--keep", is_flag=True, help="Leave the files there at the end.")
@click.option("--raise-limits", is_flag=True, help="Rate limits high enough for load tests.")
@click.option("--by-hand", is_flag=True, help="Without a running server: secrets are carried by files.")
@click.option("--interval", type=click.IntRange(1, 10**9), help="Seconds until a secret's successor is due.")
@click.option("--grace", type=click.IntRange(0, 10**9), help="Seconds of grace after that.")
def up(
    directory: Path,
    backend: str,
    agent_uid: int | None,
    keep: bool,
    raise_limits: bool,
    by_hand: bool,
    interval: int | None,
    grace: int | None,
) -> None:
    """Start a stand and keep it running until Ctrl-C or SIGTERM."""
    layout = Layout(directory.absolute())
    if layout.root.exists() and any(layout.root.iterdir()):
        if not setup.is_left_over(layout):
            raise StandError(f"{layout.root} is not empty: choose a new directory, or remove it")
        click.echo(f"NOTICE: {layout.root} has the files of a stand that failed or was killed; they are removed", err=True)
        setup.clear(layout)
    if os.geteuid() == 0:
        uid: int | None = agent_uid or ROOT_STANDS_IN_UID
    elif agent_uid not in (None, os.geteuid()):
        raise StandError("only root can run the agent as another user: leave --agent-uid out")
    else:
        uid = None
    plan = Plan(backend, uid, by_hand, interval, grace, keep)
    stand = Stand(layout, plan, made_root=not layout.root.exists())
    stand.run(_RAISED_LIMITS if raise_limits else {})


# What acts on a running stand


@main.command()
@directory_option
def down(directory: Path) -> None:
    """Stop a stand."""
    acts.down(running(directory))


@main.command()
@directory_option
def restart(directory: Path) -> None:
    """Stop the agent and start it again; callers wait meanwhile."""
    click.echo(f"the agent runs again, pid {acts.restart(running(directory))}")


@main.command(context_settings={"ignore_unknown_options": True})
@directory_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def issue(directory: Path, arguments: tuple[str, ...]) -> None:
    """Issue a license; takes the options of 'license-server issue' (by default: feature sales, 30 days)."""
    layout = running(directory)
    given = acts.with_defaults(arguments)
    sys.exit(acts.passed_on(layout, "license-server", "issue", "--agent", setup.AGENT_ID, *given))


@main.command(context_settings={"ignore_unknown_options": True})
@directory_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def deliver(directory: Path, arguments: tuple[str, ...]) -> None:
    """Issue a license and give it to the agent, so that no till has to carry its token; takes the options of 'issue'."""
    click.echo(acts.delivered(running(directory), *arguments))


@main.command()
@directory_option
def rotate(directory: Path) -> None:
    """Have the agent get a new secret and re-issued tokens."""
    click.echo(f"secret version {acts.rotate(running(directory))} is ACTIVE")


@main.command()
@directory_option
@click.argument("state", type=click.Choice(["stop", "start"]))
def server(directory: Path, state: str) -> None:
    """Cut the license server off, or bring it back."""
    acts.switch_server(running(directory), on=state == "start")


@main.command()
@directory_option
@click.argument("state", type=click.Choice(["stop", "start"]))
def agent(directory: Path, state: str) -> None:
    """Stop the agent, so that callers wait until their deadlines, or start it."""
    acts.switch_agent(running(directory), on=state == "start")


@main.command()
@directory_option
@click.argument("version", type=click.IntRange(1))
def invalidate(directory: Path, version: int) -> None:
    """Invalidate a secret version in the agent."""
    acts.require_agent(running(directory))
    sys.exit(acts.passed_on(running(directory), "license-agent-cli", "secrets", "invalidate", str(version), "--yes"))


@main.command()
@directory_option
@click.argument("license_id")
def revoke(directory: Path, license_id: str) -> None:
    """Revoke the license LICENSE_ID, and have the agent fetch the list. Its id: 'issue --license-id ID'."""
    acts.revoke(running(directory), license_id)


@main.command()
@directory_option
@click.argument("state", type=click.Choice(["on", "off"]), default="on")
def degrade(directory: Path, state: str) -> None:
    """Switch degraded mode on or off: verdicts say so, and licenses stay valid until the grace of their secret ends."""
    acts.degrade(running(directory), on=state == "on")


@main.command(context_settings={"ignore_unknown_options": True})
@directory_option
@click.argument("name", metavar="REASON", type=click.Choice([reason.value for reason in Reason]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def reason(directory: Path, name: str, arguments: tuple[str, ...]) -> None:
    """Print a new token that gets the verdict REASON now; takes the options of 'license-server issue' as well.

    The reasons: ok, expired, not_yet_valid, malformed, unknown_secret, secret_invalidated, bad_signature, wrong_audience,
    revoked, degraded_expired, revocations_stale. The last two cut the server off, and other licenses of the
    stand get them too, until 'reason' is used again: 'reason ok' puts everything back.
    """
    wanted = Reason(name)
    token = reasons.bring_about(running(directory), wanted, arguments)
    if wanted in reasons.CHANGES_THE_STAND:
        click.echo(f"NOTICE: other licenses of this stand get {name} too; 'license-stand reason ok' ends that", err=True)
    click.echo(token)


main.add_command(ota)
main.add_command(fleet)


def entry() -> None:
    """The console script."""
    try:
        main()
    except StandError as error:
        click.echo(f"license-stand: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"license-stand: {os_problem(error)}", err=True)
        sys.exit(1)
