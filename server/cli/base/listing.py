"""Prints lists of any length: page by page, as a table or as one JSON array. Shows how far long work is."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click
from tabulate import tabulate

from common.text import shown

from .options import utc

_TIMES = ("not_before", "expires", "last_seen", "next_end")
limit_option = click.option("--limit", type=click.IntRange(1), metavar="N", help="List at most so many.")


def members_of(row: Any) -> dict[str, Any]:
    """All fields of a dataclass, or of a result of an act."""
    return row.model_dump(mode="json") if hasattr(row, "model_dump") else asdict(row)


def show_pages(
    pages: Iterable[Sequence[Any]],
    headers: Sequence[str],
    line: Callable[[Any], tuple[object, ...]],
    as_json: bool,
    members: Callable[[Any], dict[str, Any]] = members_of,
) -> int:
    """Prints rows as they come, and returns their number.

    Args:
        pages: of dataclasses, or of results of acts.
        headers: of the table.
        line: the cells of a row of the table.
        as_json: print one array of objects with all fields, instead of a table.
        members: of the object of a row.
    """
    return _json(pages, members) if as_json else _table(pages, headers, line)


def _json(pages: Iterable[Sequence[Any]], members: Callable[[Any], dict[str, Any]]) -> int:
    count = 0
    for page in pages:
        objects = [json.dumps(members(row), indent=2, default=str).replace("\n", "\n  ") for row in page]
        click.echo(("," if count else "[") + "\n  " + ",\n  ".join(objects), nl=False)
        count += len(page)
    click.echo("\n]" if count else "[]")
    return count


def _table(pages: Iterable[Sequence[Any]], headers: Sequence[str], line: Callable[[Any], tuple[object, ...]]) -> int:
    count = 0
    widest: list[tuple[object, ...]] = []
    for page in pages:
        cells = [line(row) for row in page]
        # A version such as 1.10 is no number.
        texts = [
            place for place, column in enumerate(zip(*cells, strict=True)) if any(isinstance(each, str) for each in column)
        ]
        text = tabulate([*widest, *cells], headers=headers, disable_numparse=texts)
        if widest:
            # Header, rule and the row that keeps the columns as wide as before.
            text = text.split("\n", 3)[3]
        click.echo(shown(text))
        widest = [tuple(_as_wide(column) for column in zip(*widest, *cells, strict=True))]
        count += len(page)
    if not count:
        click.echo(tabulate([], headers=headers))
    return count


def _as_wide(column: Sequence[object]) -> object:
    """A cell as wide as the widest, that is aligned as they are."""
    width = max((len(part) for cell in column for part in str(cell).split("\n")), default=0)
    return 10 ** (width - 1) if width and all(isinstance(cell, int) for cell in column) else "x" * width


def show_one(row: Any, as_json: bool) -> None:
    """Prints a dataclass or a result of an act: each member on a line, or as a JSON object.

    What is None or empty is left out of the lines. Notices go to standard error.
    """
    content = members_of(row)
    for notice in content.pop("notices", ()):
        click.echo(notice, err=True)
    if as_json:
        click.echo(json.dumps(content, indent=2, default=str))
        return
    lines: list[tuple[str, str]] = []
    for name, value in content.items():
        if isinstance(value, dict):
            lines += [(str(key), str(each)) for key, each in value.items()]
        elif value not in (None, "", (), []):
            lines.append((name.replace("_", " "), _cell(name, value)))
    width = max((len(name) for name, _value in lines), default=0) + 2
    click.echo(shown("\n".join(f"{name + ':':<{width}}{value}" for name, value in lines)))


def _cell(name: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and (name.endswith("_at") or name in _TIMES):
        return utc(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name == "duration":
        return f"{value // 86_400} days" if not value % 86_400 else f"{value} seconds"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@contextmanager
def progress_bar(label: str, length: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that is called with what was done; it moves a bar on a terminal, and does nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield bar.update
