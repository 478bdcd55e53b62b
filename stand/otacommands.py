"""Commands of `license-stand ota`: updates of a POS application, good ones, bad ones and forged ones."""

import sys
from pathlib import Path

import click

from . import acts, updates
from .options import directory_option, running
from .setup import AGENT_ID


@click.group()
def ota() -> None:
    """Update a sample POS application: publish versions that work, that do not, and that are forged."""


@ota.command("init")
@directory_option
def init(directory: Path) -> None:
    """Set updates up: a vendor's keys and repository, updater and installer, and a sample POS 1.0 that runs."""
    layout = running(directory)
    updates.begin(layout)
    click.echo(f"pos {updates.FIRST} runs; 'license-stand ota publish 1.1' publishes an update for it")


@ota.command("publish")
@directory_option
@click.argument("version")
@click.option("--bad", is_flag=True, help="A version whose health command fails: it is rolled back.")
@click.option("--forged", is_flag=True, help="A package that somebody changes in the repository: it is refused.")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Pack this directory instead of the sample POS; it has bin/pos, which runs, and bin/check, the health command.",
)
def publish(directory: Path, version: str, bad: bool, forged: bool, source: Path | None) -> None:
    """Publish VERSION of the POS application, order it, and show how the update ended.

    Exit status 0 says that it ended as it should: installed, with --bad rolled back, with --forged refused.
    """
    if bad and (forged or source is not None):
        raise click.UsageError("--bad makes a sample POS that does not work; leave --forged and --from out")
    found = updates.publish(
        running(directory), version, source, bad=bad, forged=forged, say=lambda text: click.echo(text, err=True)
    )
    if found.outcome == "installed":
        click.echo(f"installed: pos {found.version} runs, {found.before} before")
    else:
        click.echo(f"{found.outcome}: pos {found.version}: {found.reason}")
        if found.outcome == "rolled-back":
            click.echo(f"what the health command wrote is in {updates.health_log(running(directory))}, not in a journal")
    expected = "rolled-back" if bad else updates.REFUSED if forged else "installed"
    sys.exit(0 if found.outcome == expected else 1)


@ota.command("status")
@directory_option
def status(directory: Path) -> None:
    """Show what runs, where an update is, and what the license server knows of it."""
    layout = running(directory)
    click.echo(updates.status(layout))
    click.echo("\n$ license-agent-cli ota status")
    acts.passed_on(layout, "license-agent-cli", "ota", "status")
    click.echo(f"\n$ license-server ota status {AGENT_ID}")
    sys.exit(acts.passed_on(layout, "license-server", "ota", "status", AGENT_ID))
