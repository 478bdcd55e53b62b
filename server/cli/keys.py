"""Commands that have to do with the server's own keys."""

from pathlib import Path

import click

from server.base.errors import RegistryError
from server.base.settings import ROOT_KEY, place_of
from server.keys.lifecycle import LIFETIMES, WARN_S, KeyRow
from server.keys.rootkey import read_root_key, write_root_key
from server.registry.database import Database
from server.wiring import Plan, create_server

from .options import (
    directory_option,
    json_option,
    now,
    opened,
    out_option,
    passphrase,
    passphrase_option,
    root_key_option,
    show,
    utc,
    write,
)


@click.command()
@directory_option
@click.option("--issuer", default="license-server", show_default=True, help="The name that licenses carry as their issuer.")
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="DNS name or IP address of the server; may be repeated.  [default: localhost, 127.0.0.1]",
)
@click.option("--database", "url", metavar="URL", help="postgresql+psycopg://USER@HOST/NAME instead of a file of SQLite.")
@click.option(
    "--master-key",
    metavar="WHERE",
    help="A file, or a PKCS #11 URI of a key in a token; made if missing. A systemd credential goes before it.",
)
@click.option("--interval", type=click.IntRange(1, 10**9), help="Seconds until a secret's successor is due.  [default: 86400]")
@click.option("--grace", type=click.IntRange(0, 10**9), help="Seconds of grace after that.  [default: 604800]")
@root_key_option
@passphrase_option
def init(
    directory: Path,
    issuer: str,
    names: tuple[str, ...],
    url: str | None,
    master_key: str | None,
    interval: int | None,
    grace: int | None,
    root_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Make a new server: its keys and certificates, and an empty registry."""
    where = root_key or directory / ROOT_KEY
    secret = passphrase(passphrase_file, new=True)
    plan = Plan(issuer, names or ("localhost", "127.0.0.1"), where, secret, interval, grace)
    create_server(directory, plan, now(), url, master_key)
    click.echo(f"made the server in {directory}; its root's pin is printed by 'license-server root-pin'", err=True)
    click.echo(f"move the root key {where} to a place away from this machine: it is needed only to rotate keys", err=True)
    if secret is None:
        click.echo("NOTICE: the root key's file is not encrypted; give --root-passphrase-file to have it so", err=True)


@click.command()
@directory_option
def migrate(directory: Path) -> None:
    """Bring the database to this program's revision. Make a backup first."""
    database = Database(place_of(directory).url)
    try:
        before = database.revision()
        database.migrate()
        click.echo(f"the database has revision {database.revision()} (before: {before or 'none'})", err=True)
    finally:
        database.close()


@click.command()
@directory_option
@out_option
def trust(directory: Path, out: Path | None) -> None:
    """Print the public keys that agents trust (the input of 'license-agent init --trust')."""
    with opened(directory) as server:
        write(server.keys.trust().decode(), out)


@click.command("root-pin")
@directory_option
def root_pin(directory: Path) -> None:
    """Print the pin of the offline root, for 'license-agent-cli provision --root'."""
    with opened(directory) as server:
        click.echo(server.keys.root_pins()[0])


@click.group()
def keys() -> None:
    """Look after the server's keys and certificates."""


@keys.command("list")
@directory_option
@json_option
def keys_list(directory: Path, as_json: bool) -> None:
    """List all keys. What ends within 30 days is marked."""
    moment = now()

    def line(row: KeyRow) -> tuple[str, ...]:
        soon = row.state == "active" and row.expires_at - moment <= WARN_S
        return row.kind, row.kid, row.state, utc(row.created_at), utc(row.expires_at), "ROTATE SOON" if soon else ""

    with opened(directory) as server:
        show(server.key_lifecycle.listed(), ("kind", "id", "state", "made", "ends", ""), line, as_json)


@keys.command("rotate")
@directory_option
@click.argument("kind", type=click.Choice(list(LIFETIMES)))
@click.option("--name", "names", multiple=True, metavar="NAME", help="With 'tls': other names than those of the present one.")
@click.option(
    "--new-root-key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="With 'root': where the new root's private key is to be.",
)
@root_key_option
@passphrase_option
def keys_rotate(
    directory: Path,
    kind: str,
    names: tuple[str, ...],
    new_root_key: Path | None,
    root_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Make a new key of a KIND. Old ones go on being accepted for a time; all but 'tls' need the root key."""
    secret = passphrase(passphrase_file, new=False) if root_key is not None else None
    lent = None if root_key is None else read_root_key(root_key, secret)
    with opened(directory) as server:
        if kind != "root":
            kid = server.key_lifecycle.rotate(kind, now(), lent, names)
            click.echo(f"the {kind} key in use is {kid} now; what the old one made stays good for a time", err=True)
            return
        if lent is None or new_root_key is None:
            raise RegistryError("a new root needs --root-key (the present one) and --new-root-key (where the new one is to be)")
        pin = server.key_lifecycle.rotate_root(now(), lent, lambda key: write_root_key(new_root_key, key, secret))
        click.echo(pin)
        click.echo("agents learn of the new root at their next contact; then rotate issuing-ca and tls with its key", err=True)


@keys.command("end")
@directory_option
@click.option("--id", "kid", required=True, metavar="ID", help="Of the key, from 'keys list'. It may begin with a dash.")
@root_key_option
@passphrase_option
def keys_end(directory: Path, kid: str, root_key: Path | None, passphrase_file: Path | None) -> None:
    """Take a retired key out of the key set at once, because somebody else may have it. Needs the root key."""
    if root_key is None:
        raise RegistryError("a key set must be signed by the root: name its key with --root-key")
    lent = read_root_key(root_key, passphrase(passphrase_file, new=False))
    with opened(directory) as server:
        server.key_lifecycle.end(kid, now(), lent)


COMMANDS: tuple[click.Command, ...] = (init, migrate, trust, root_pin, keys)
