"""Commands that back the registry up and restore it."""

from pathlib import Path

import click

from server.cli.base.operator import operator
from server.cli.base.options import database_file_option, database_url, directory_option, now, opened, public_url, utc
from server.registry.upkeep.backup import write_backup
from server.wiring import restore_server


@click.command()
@directory_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The new file; one that exists is not touched.",
)
def backup(directory: Path, out: Path) -> None:
    """Write the whole registry to one file of mode 0600, while the server may run. The master key is not in it."""
    with opened(directory) as server:
        rows = write_backup(server.database, out, server.cipher.backup_key(), now())
        kind = server.master.kind
    click.echo(f"{out}: {rows['agent']} agents, {rows['license']} licenses, {rows['audit']} audit records", err=True)
    click.echo(f"it opens with this master key only, which is not in it: {kind}", err=True)


@click.command()
@directory_option
@click.option("--check", is_flag=True, help="Only check the file, and whether the master key opens it.")
@click.option(
    "--database",
    "url",
    metavar="URL",
    callback=public_url,
    help="As in 'init'. Without it, that of DIR/settings.toml, or a SQLite file.",
)
@database_file_option
@click.option(
    "--master-key", metavar="WHERE", help="The backup's master key. Without it, that of DIR/settings.toml, or DIR/master.key."
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def restore(
    directory: Path, check: bool, url: str | None, url_from_file: str | None, master_key: str | None, file: Path
) -> None:
    """Fill an empty registry from the backup FILE. A registry that exists is not overwritten."""
    found = restore_server(directory, file, now(), database_url(url, url_from_file), master_key, operator(), check=check)
    counts = ", ".join(f"{found.rows.get(name, 0)} {text}" for name, text in _COUNTED)
    click.echo(f"{file}: made at {utc(found.made_at)} on {found.origin}, revision {found.revision}: {counts}", err=True)
    if check:
        click.echo("the backup is whole, and the master key opens it; nothing was written", err=True)
        return
    click.echo("restored; what happened since the backup is lost here. Before you start the server:", err=True)
    click.echo("- repeat 'agents revoke', 'revoke' and 'keys end' for everything that was revoked or ended since", err=True)
    click.echo("- issue licenses again that were issued since, with the same --license-id", err=True)
    click.echo("agents with newer secrets keep them: the server skips ahead of their numbers at their next contact", err=True)


_COUNTED = (("agent", "agents"), ("license", "licenses"), ("audit", "audit records"))

COMMANDS: tuple[click.Command, ...] = (backup, restore)
