"""Options and messages of the commands that take a table: which file, all or none, and what became of its lines."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from server.base.errors import Invalid
from server.licensing.lists.sheets import text_of

MAX_SHOWN = 20
NOTHING_DONE = "nothing was done: "
"""Is said before the counts of a table that was refused as a whole."""

rows_option = click.option(
    "--row-by-row", is_flag=True, help="Take the good lines also if others are bad.  [default: all or none]"
)


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument FILE and the option `--row-by-row`."""
    file = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
    return file(rows_option(command))


def text_in(file: Path) -> str:
    """The text of a table. Raises Invalid: it is empty, too large, or not UTF-8."""
    text = text_of(file.read_bytes())
    if not text.strip():
        raise Invalid(f"{file} is empty: its first line names the columns")
    return text


def show_imported(run: Callable[[], Any], as_json: bool) -> None:
    """Runs an import, and says what became of its lines; exit status 1 if some are bad.

    Args:
        run: performs it.
        as_json: print counts and bad lines as JSON on standard output.
    """
    from server.acts.tables import RowsRefused

    try:
        done = run()
    except RowsRefused as refused:
        bad = [row.model_dump() for row in refused.rows]
        counts = {"created": 0, "unchanged": 0, "bad": len(bad)}
        before = NOTHING_DONE
    else:
        before = ""
        bad = [{"line": row.line, "id": row.id, "problem": row.problem} for row in done.results if row.outcome == "bad"]
        counts = {"created": done.created, "unchanged": done.unchanged, "bad": done.bad}
    say(counts, bad, as_json, before)


def say(
    counts: dict[str, int], bad: list[dict[str, Any]], as_json: bool, before: str = "", after: str = "", more: str = ""
) -> None:
    """Says how many lines came to what, and which are bad; ends the command with status 1 if there are bad ones.

    Args:
        counts: of lines by outcome.
        bad: with `line` and `problem` each.
        as_json: print both as JSON on standard output instead.
        before: is said before the counts.
        after: is said behind the counts.
        more: where the bad lines are that are not shown.
    """
    if as_json:
        click.echo(json.dumps({"counts": counts, "bad": bad}, indent=2))
    else:
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing to do: the file has no line"
        click.echo(before + said + after, err=True)
        for each in bad[:MAX_SHOWN]:
            click.echo(f"line {each['line']}: {each['problem']}", err=True)
        if len(bad) > MAX_SHOWN:
            click.echo(f"and {len(bad) - MAX_SHOWN} more bad lines{more}", err=True)
    if bad:
        sys.exit(1)
