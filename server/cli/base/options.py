"""Options and helpers that the commands share."""

import codecs
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any

import click
from sqlalchemy.orm import Session
from tabulate import tabulate

from common.text import forbidden_in, shown
from server.base.errors import RegistryError
from server.base.settings import url_in
from server.base.times import parse_duration, parse_time, zone_of
from server.keys.rootkey import needs_passphrase
from server.registry.database import Database
from server.wiring import Server, open_server

from .acting import command, given, require_local
from .operator import operator

MAX_REASON = 200


class LocalDirectory(click.Option):
    """The directory of a command that works on the server's own machine only: it refuses the name of another server."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """The value, converted and checked."""
        if given().server is not None:
            raise RegistryError(
                "this command works on the server's own machine only, not with --server: run it there, with --dir or "
                "LICENSE_SERVER_DIR"
            )
        return super().process_value(ctx, value)


directory_option = click.option(
    "--dir",
    "directory",
    cls=LocalDirectory,
    is_eager=True,
    type=click.Path(file_okay=False, path_type=Path),
    envvar="LICENSE_SERVER_DIR",
    required=True,
    help="The server's directory (or LICENSE_SERVER_DIR).",
)
where_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="LICENSE_SERVER_DIR",
    help="The server's directory (or LICENSE_SERVER_DIR); not with --server.",
)
agent_option = click.option("--agent", "agent_id", required=True, metavar="ID", help="The agent's id.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
root_key_option = click.option(
    "--root-key", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="The offline root's private key."
)
passphrase_option = click.option(
    "--root-passphrase-file",
    "passphrase_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A file whose first line is the root key's passphrase. Without it, the command asks on the terminal if it needs one.",
)

PAUSE_S = 0.05
"""Between two batches of agents: half of the time after which a process that waits for SQLite's lock looks again."""


def confirm(question: str, *, yes: bool) -> None:
    """Asks, unless the command has `--yes`; ends the command if the answer is no.

    Raises:
        RegistryError: there is nobody to ask.
    """
    if yes:
        return
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise RegistryError("nothing was done: this command asks first, and nobody answered yes; --yes answers") from None


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def public_url(_ctx: click.Context, _param: click.Parameter, url: str | None) -> str | None:
    """Refuses a URL with a password: the process list would show it."""
    if url is not None and Database(url).has_password:
        raise click.BadParameter(
            "every user of this machine sees a password on a command line: change it, write the URL to a file of mode 0600, "
            "and name the file with --database-file"
        )
    return url


def _url_in_file(_ctx: click.Context, _param: click.Parameter, file: Path | None) -> str | None:
    return None if file is None else url_in(file)


def database_url(url: str | None, from_file: str | None) -> str | None:
    """The one of the two that was given."""
    if url is not None and from_file is not None:
        raise click.UsageError("Give --database or --database-file, not both.")
    return url or from_file


database_file_option = click.option(
    "--database-file",
    "url_from_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_url_in_file,
    metavar="FILE",
    help="A file of mode 0600 whose first line is the URL, which may contain a password.",
)


def _zone(_ctx: click.Context, _param: click.Parameter, name: str) -> tzinfo:
    try:
        return zone_of(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


zone_option = click.option(
    "--zone",
    callback=_zone,
    is_eager=True,
    default="UTC",
    show_default=True,
    metavar="NAME",
    help="The time zone of dates, such as Europe/Berlin; 'local' for that of this machine.",
)


class TimeType(click.ParamType[int]):
    """A time on the command line, in the zone of `zone_option`.

    Args:
        ends: whether something ends then: a date means the end of that day.
    """

    name = "time"

    def __init__(self, *, ends: bool = False) -> None:
        self._ends = ends

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds since 1970 UTC."""
        try:
            zone = UTC if ctx is None else ctx.params.get("zone", UTC)
            return parse_time(str(value), now(), zone, ends=self._ends)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class DurationType(click.ParamType[int]):
    """A duration on the command line."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _reason(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    if len(text) > MAX_REASON or forbidden_in(text) is not None:
        raise click.BadParameter(f"a reason is one line of at most {MAX_REASON} characters")
    return text


reason_option = click.option(
    "--reason", default="", metavar="TEXT", callback=_reason, help="Why, for the audit; no names of persons."
)


def pairs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Options of the form NAME=VALUE, as a dictionary."""
    found = {}
    for value in values:
        name, sign, rest = value.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE")
        found[name] = rest
    return found


def now() -> int:
    """Seconds since 1970 UTC."""
    return int(time.time())


@contextmanager
def opened(directory: Path) -> Iterator[Server]:
    """Opens the server in a directory, and closes it at the end."""
    server = open_server(directory)
    reason = given().reason
    server.database.operator = operator() | ({"why": reason} if reason else {})
    try:
        yield server
    finally:
        server.close()


@contextmanager
def reading(directory: Path) -> Iterator[tuple[Server, Session]]:
    """Opens the server in a directory, and a transaction that only reads."""
    with opened(directory) as server, server.database.read() as session:
        yield server, session


@contextmanager
def writing(directory: Path, reason: str = "") -> Iterator[tuple[Server, Session]]:
    """Opens the server in a directory, and a transaction that commits at the end. A reason is in what it records."""
    with opened(directory) as server:
        if reason:
            server.database.operator = {**server.database.operator, "why": reason}
        with server.database.write() as session:
            require_local(session, command(), now())
            yield server, session


@contextmanager
def changing(directory: Path) -> Iterator[Server]:
    """Opens the server in a directory for a command whose changes have transactions of their own."""
    with opened(directory) as server:
        with server.database.write() as session:
            require_local(session, command(), now())
        yield server


def new_passphrase(file: Path | None) -> bytes | None:
    """The passphrase of a new root key, from the file or, asked twice, the terminal; None if there is neither, or it is empty.

    Args:
        file: has the passphrase in its first line.
    """
    return _passphrase(file, "passphrase of the root key (empty: none)", twice=True)


def passphrase_of(key: Path, file: Path | None) -> bytes | None:
    """The passphrase of a root key that exists; nobody is asked for that of a key without one.

    Args:
        key: the root key.
        file: has the passphrase in its first line.
    """
    if file is None and not needs_passphrase(key):
        return None
    return _passphrase(file, f"passphrase of the root key {key}", twice=False)


def passphrase_in(file: Path | None, question: str, *, twice: bool = False) -> bytes | None:
    """A passphrase from the first line of a file or, if there is none, the terminal; None for none, or an empty one.

    Args:
        file: has the passphrase in its first line.
        question: for the terminal.
        twice: whether it is a new one, which is asked twice.
    """
    return _passphrase(file, question, twice=twice)


def _passphrase(file: Path | None, question: str, *, twice: bool) -> bytes | None:
    if file is not None:
        line = file.read_bytes().split(b"\n", 1)[0]
        if twice and line.startswith(codecs.BOM_UTF8):
            raise RegistryError(f"{file} begins with a byte order mark, which the passphrase would have: save it without one")
        return line or None
    if not sys.stdin.isatty():
        return None
    text: str = click.prompt(question, hide_input=True, confirmation_prompt=twice, default="", show_default=False)
    return text.encode() or None


def utc(seconds: int | None) -> str:
    """A time for people, or a dash."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def members(row: Any) -> dict[str, Any]:
    """The members of a form, for JSON."""
    found: dict[str, Any] = row.model_dump(mode="json")
    return found


def show(
    rows: Sequence[Any], headers: Sequence[str], line: Any, as_json: bool, members: Callable[[Any], dict[str, Any]] = asdict
) -> None:
    """Prints rows as a table, with `line` for the cells of each, or as JSON with all their fields."""
    if as_json:
        click.echo(json.dumps([members(row) for row in rows], indent=2, default=str))
    else:
        click.echo(shown(tabulate([line(row) for row in rows], headers=headers)))
