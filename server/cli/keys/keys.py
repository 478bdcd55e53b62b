"""Commands for a new server, its database and its own keys."""

from pathlib import Path
from typing import Any

import click
from cryptography.hazmat.primitives.asymmetric import ec

from server.base.errors import RegistryError
from server.base.settings import ROOT_KEY, place_of
from server.cli.base.acting import local_directory, perform
from server.cli.base.operator import operator
from server.cli.base.options import (
    changing,
    database_file_option,
    database_url,
    directory_option,
    json_option,
    members,
    new_passphrase,
    now,
    opened,
    passphrase_of,
    passphrase_option,
    public_url,
    root_key_option,
    show,
    utc,
    where_option,
)
from server.cli.base.output import out_option, write
from server.keys.lifecycle import LIFETIMES, PREPARED, WARN_S, WITHOUT_ROOT, held
from server.keys.rootkey import NewRootKey, read_root_key
from server.keys.schedule import USE_AHEAD_S, Planned, planned
from server.registry.database import Database
from server.wiring import Plan, Server, create_server


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
@click.option(
    "--database",
    "url",
    metavar="URL",
    callback=public_url,
    help="postgresql+psycopg://USER@HOST/NAME, instead of a SQLite file; without a password.",
)
@database_file_option
@click.option(
    "--master-key",
    metavar="WHERE",
    help="A file, or a PKCS #11 URI of a key in a token; created if missing. A systemd credential takes precedence.",
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
    url_from_file: str | None,
    master_key: str | None,
    interval: int | None,
    grace: int | None,
    root_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Create a server: its keys and certificates, and an empty registry."""
    where = root_key or directory / ROOT_KEY
    secret = new_passphrase(passphrase_file)
    plan = Plan(issuer, names or ("localhost", "127.0.0.1"), where, secret, interval, grace)
    if not create_server(directory, plan, now(), database_url(url, url_from_file), master_key, operator()):
        click.echo("an earlier run was interrupted after it had created the server, with the options of that run", err=True)
    click.echo(f"created the server in {directory}; 'license-server root-pin' prints the pin of its root", err=True)
    click.echo(f"move the root key {where} away from this machine; only key rotations need it", err=True)
    if secret is None:
        click.echo("NOTICE: the root key's file is not encrypted; --root-passphrase-file would encrypt it", err=True)


@click.command()
@directory_option
def migrate(directory: Path) -> None:
    """Migrate the database to this program's revision. Make a backup first."""
    database = Database(place_of(directory).url)
    try:
        database.require_file()
        before = database.revision()
        database.migrate()
        click.echo(f"the database has revision {database.revision()} (before: {before or 'none'})", err=True)
    finally:
        database.close()


@click.command()
@directory_option
@out_option
def trust(directory: Path, out: Path | None) -> None:
    """Print the public keys that agents trust, for 'license-agent init --trust'."""
    with opened(directory) as server:
        write(server.keys.trust().decode(), out)


@click.command("root-pin")
@directory_option
def root_pin(directory: Path) -> None:
    """Print the pin of the offline root, for 'license-agent-cli provision --root'."""
    with opened(directory) as server:
        click.echo(server.keys.root_pins()[0])


@click.command("root-certificate")
@directory_option
@out_option
def root_certificate(directory: Path, out: Path | None) -> None:
    """Print the root certificate that clients of the operator API verify the server against."""
    with opened(directory) as server:
        write(server.keys.root_pem(), out)


@click.group()
def keys() -> None:
    """List, prepare, rotate, revert and end the server's keys and certificates."""


@keys.command("list")
@where_option
@json_option
def keys_list(directory: Path | None, as_json: bool) -> None:
    """List all keys, and mark those that end within 30 days."""
    moment = now()

    def line(row: Any) -> tuple[str, ...]:
        soon = row.state == "active" and row.expires_at - moment <= WARN_S
        return row.kind, row.kid, row.state, utc(row.created_at), utc(row.expires_at), "ROTATE SOON" if soon else ""

    rows = perform("keys.list", directory).items
    show(rows, ("kind", "id", "state", "made", "ends", ""), line, as_json, members)


@keys.command("rotate")
@where_option
@click.argument("kind", type=click.Choice(list(LIFETIMES)))
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="With 'tls': other names than the present certificate's.",
)
@click.option(
    "--new-root-key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="With 'root': the file for the new root's private key.",
)
@root_key_option
@passphrase_option
def keys_rotate(
    directory: Path | None,
    kind: str,
    names: tuple[str, ...],
    new_root_key: Path | None,
    root_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Replace the key of a KIND. The old key stays valid for a while. All but 'tls' and 'operator-ca' need the root key."""
    if root_key is None and kind in WITHOUT_ROOT:
        kid = perform("keys.rotate", directory, kind=kind, names=list(names)).kid
        click.echo(f"the {kind} key is now {kid}; what the old key signed stays valid for a while", err=True)
        return
    here = local_directory(directory, "the root key")
    secret = None if root_key is None else passphrase_of(root_key, passphrase_file)
    lent = None if root_key is None else read_root_key(root_key, secret)
    # Who lends the offline root needs no account.
    with opened(here) if lent is not None else changing(here) as server:
        if kind != "root":
            kid = server.key_lifecycle.rotate(kind, now(), lent, names)
            click.echo(f"the {kind} key is now {kid}; what the old key signed stays valid for a while", err=True)
            return
        if lent is None or new_root_key is None:
            raise RegistryError("a new root needs --root-key (the present key) and --new-root-key (the file for the new one)")
        click.echo(_new_root(server, lent, NewRootKey(new_root_key, secret)))
        click.echo(
            "agents learn the new root at their next contact; after that, rotate issuing-ca and tls with its key", err=True
        )


@keys.command("prepare")
@directory_option
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(PREPARED), help="Of this kind only; may be repeated.  [default: all]"
)
@root_key_option
@passphrase_option
def keys_prepare(directory: Path, kinds: tuple[str, ...], root_key: Path | None, passphrase_file: Path | None) -> None:
    """Make the keys that the server will need next. Needs the root key.

    The keys wait in the key set until 'serve' puts them in use on the day that 'keys schedule' shows. A kind that has such
    a key already keeps it.
    """
    if root_key is None:
        raise RegistryError("a key set must be signed by the root; give the root's key with --root-key")
    lent = read_root_key(root_key, passphrase_of(root_key, passphrase_file))
    with opened(directory) as server:
        for kind, kid in server.key_lifecycle.prepare(kinds or PREPARED, now(), lent).items():
            click.echo(f"the next {kind} key is {kid}", err=True)
        click.echo("'license-server keys schedule' shows when they replace the present ones", err=True)


@keys.command("use-next")
@where_option
@click.argument("kind", type=click.Choice(PREPARED))
def keys_use_next(directory: Path | None, kind: str) -> None:
    """Put the prepared key of a KIND in use now, ahead of its day. Needs no root key."""
    changed = perform("keys.use_next", directory, kind=kind)
    click.echo(
        f"the {kind} key is now {changed.kid}; 'license-server keys revert {kind}' goes back to {changed.before}", err=True
    )


@keys.command("revert")
@where_option
@click.argument("kind", type=click.Choice(list(USE_AHEAD_S)))
def keys_revert(directory: Path | None, kind: str) -> None:
    """Put the earlier key of a KIND back in use. What the present one signed stays valid. Needs no root key."""
    changed = perform("keys.revert", directory, kind=kind)
    click.echo(f"the {kind} key is now {changed.kid} again; {changed.before} is still accepted", err=True)


@keys.command("schedule")
@where_option
@json_option
def keys_schedule(directory: Path | None, as_json: bool) -> None:
    """Show when each key is replaced, and for which kinds a key has to be prepared."""
    moment = now()

    def line(row: Planned) -> tuple[str, ...]:
        missing = row.next_kid is None and row.kind in PREPARED
        said = "PREPARE NOW" if missing and moment >= row.warn_at else ""
        waiting = "made on the day" if row.kind == "tls" else row.next_kid or "none"
        return row.kind, row.kid, waiting, utc(row.use_at), utc(row.ends_at), said

    plans = planned(held(perform("keys.list", directory).items))
    show(plans, ("kind", "in use", "next", "replaced", "ends", ""), line, as_json)


def _new_root(server: Server, lent: ec.EllipticCurvePrivateKey, file: NewRootKey) -> str:
    """Makes a new root and returns its pin; or finishes a run that was interrupted behind its commit."""
    present = server.keys.root_pins()[0]
    if file.left_by(present):
        file.put()
        return present
    file.check()
    try:
        pin = server.key_lifecycle.rotate_root(now(), lent, file.write)
    except RegistryError:
        file.discard()
        raise
    file.put()
    return pin


@keys.command("end")
@directory_option
@click.option("--id", "kid", required=True, metavar="ID", help="The key's id, from 'keys list'. It may begin with a dash.")
@root_key_option
@passphrase_option
def keys_end(directory: Path, kid: str, root_key: Path | None, passphrase_file: Path | None) -> None:
    """End a retired or prepared key at once, because somebody else may have it. Needs the root key."""
    if root_key is None:
        raise RegistryError("a key set must be signed by the root; give the root's key with --root-key")
    lent = read_root_key(root_key, passphrase_of(root_key, passphrase_file))
    with opened(directory) as server:
        server.key_lifecycle.end(kid, now(), lent)


COMMANDS: tuple[click.Command, ...] = (init, migrate, trust, root_pin, root_certificate, keys)
