"""The command that moves the registry to another database."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from server.base.settings import SETTINGS, url_in
from server.cli.base.listing import progress_bar
from server.cli.base.operator import operator
from server.cli.base.options import directory_option, now, public_url
from server.moving import Moved, Progress, move_server, reopen


def _url_in_file(_ctx: click.Context, _param: click.Parameter, file: Path | None) -> str | None:
    return None if file is None else url_in(file)


@click.command()
@directory_option
@click.option(
    "--to",
    metavar="URL",
    callback=public_url,
    help="The new, empty database: postgresql+psycopg://USER@HOST/NAME or sqlite:////PATH; without a password.",
)
@click.option(
    "--to-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_url_in_file,
    metavar="FILE",
    help="A file of mode 0600 whose first line is that URL, which may contain a password.",
)
@click.option("--reopen", "again", is_flag=True, help="Open the registry again that was moved away from here.")
def move(directory: Path, to: str | None, to_file: str | None, again: bool) -> None:
    """Move the registry to another, empty database, while no server runs: from SQLite to PostgreSQL, for example.

    Without --to and --to-file, the systemd credential license-server-database names the new database.
    """
    if sum((to is not None, to_file is not None, again)) > 1:
        raise click.UsageError("Give one of --to, --to-file and --reopen.")
    if again:
        other = reopen(directory, now(), operator())
        click.echo(f"opened again; what has happened in {other} since is not here. Let no server use that one", err=True)
        return
    with _progress() as progress:
        moved = move_server(directory, to or to_file, now(), operator(), progress)
    if not moved.tables:
        click.echo(f"the registry is in {moved.new} already; nothing was copied", err=True)
        return
    for line in _said(directory, moved):
        click.echo(line, err=True)


def _said(directory: Path, moved: Moved) -> Iterator[str]:
    counts = ", ".join(f"{moved.tables[name].rows} {text}" for name, text in _COUNTED)
    yield f"moved to {moved.new}, and verified row by row: {counts}"
    if moved.by_credential:
        yield "before you start the server, remove its systemd credential license-server-database: it names the old database"
    yield f"the old registry in {moved.old} is closed, and nothing there was removed; remove it once the new one has a backup"
    line = f'database = "{moved.old_url}"' if moved.old_url is not None else f"the URL of {moved.old}"
    yield f"to go back before a server has used the new one: put {line} into {directory / SETTINGS},"
    yield "then run 'license-server move --reopen'"


_COUNTED = (("agent", "agents"), ("secret", "secret versions"), ("license", "licenses"), ("audit", "audit records"))


@contextmanager
def _progress() -> Iterator[Progress]:
    with ExitStack() as shown:
        bars: list[Callable[[int], None]] = []

        def begin(what: str, rows: int) -> None:
            shown.close()
            bars[:] = [shown.enter_context(progress_bar(what, rows))]

        yield Progress(begin, lambda rows: bars[0](rows))


COMMANDS: tuple[click.Command, ...] = (move,)
