"""Commands for the master key."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from common.text import quantity
from server.base.settings import Place, place_of
from server.cli.base.operator import operator
from server.cli.base.options import directory_option, json_option, now, utc
from server.keys import masterkey_rotation
from server.keys.lifecycle import DAY
from server.registry.database import Database


@contextmanager
def _ready(directory: Path) -> Iterator[tuple[Place, Database]]:
    place = place_of(directory)
    database = Database(place.url)
    database.operator = operator()
    try:
        database.ready()
        yield place, database
    finally:
        database.close()


@click.group("master-key")
def master_key() -> None:
    """Show and rotate the key that protects the registry."""


@master_key.command("show")
@directory_option
@json_option
def show_key(directory: Path, as_json: bool) -> None:
    """Print where the master key is and how old it is (never the key)."""
    with _ready(directory) as (place, database):
        found = masterkey_rotation.shown(place, database)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    click.echo(f"{found.kind}, in use since {utc(found.made_at)} ({quantity(max(now() - found.made_at, 0) // DAY, 'day')})")
    for other in found.others:
        click.echo(f"still opens the registry too: {other}; 'license-server master-key finish' ends that")


@master_key.command("rotate")
@directory_option
@click.option(
    "--to", metavar="WHERE", help="A new file, or a PKCS #11 URI of a new key in a token.  [default: the old one's place]"
)
@click.option(
    "--keep-old", is_flag=True, help="Keep the old key valid until 'finish', because other machines or systemd still use it."
)
def rotate_key(directory: Path, to: str | None, keep_old: bool) -> None:
    """Protect the registry with a new master key. Running servers continue; the old key opens nothing afterwards."""
    with _ready(directory) as (place, database):
        masterkey_rotation.rotate(place, database, now, to, keep_old=keep_old)
        found = masterkey_rotation.shown(place_of(directory), database)
    click.echo(f"the master key is now: {found.kind}", err=True)
    if found.others:
        click.echo(
            "the old one stays valid until 'license-server master-key finish'; copy the new one to all machines first",
            err=True,
        )
    click.echo(
        "backups made before now open with the old key only; keep it as long as you keep them, on another machine", err=True
    )


@master_key.command("finish")
@directory_option
def finish_rotation(directory: Path) -> None:
    """Finish a rotation: from now on, only the master key in use opens the registry."""
    with _ready(directory) as (place, database), masterkey_rotation.locked(directory):
        forgotten = masterkey_rotation.finish(place, database, now())
    click.echo(f"only the key in use opens the registry now; {forgotten} others were removed", err=True)


COMMANDS: tuple[click.Command, ...] = (master_key,)
