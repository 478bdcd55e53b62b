"""The forms of what comes many at a time: a table as CSV or as items, what became of its lines, and the refusal of bad ones."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from server.base.errors import Invalid
from server.licensing.lists.sheets import MAX_BYTES

from .act import Context, Form

MAX_LINES = 1000
"""Lines of one request over the network. The command line of the server's machine may have more."""
SHOWN = 3

Table = Annotated[str, Field(min_length=1, max_length=MAX_BYTES)]
"""The text of a file: CSV, or a JSON array."""
Cell = Annotated[str, Field(max_length=1000)]
"""What a line may say; what it has to be is judged line by line."""


class BadRow(Form):
    """A line that is not as it must be: where it is (1 is the first), what it names, and what is wrong with it."""

    line: int
    id: str | None
    problem: str


class RowsRefused(Invalid):
    """Lines of a table are bad, so nothing of it was done.

    Args:
        rows: the bad ones, in their order.
        count: of all lines.
        results: what the act knows of each line; empty where another server refused.
        said: what that one said.
    """

    def __init__(self, rows: Sequence[BadRow], count: int, results: Sequence[Any] = (), said: str = "") -> None:
        first = "; ".join(f"line {row.line}: {row.problem}" for row in rows[:SHOWN])
        more = "" if len(rows) <= SHOWN else f"; and {len(rows) - SHOWN} more"
        super().__init__(said or f"{len(rows)} of {count} lines are bad, so nothing was done ({first}{more})")
        self.rows, self.count, self.results = tuple(rows), count, tuple(results)


def data_of(context: Context, table: str | None, items: Sequence[Form] | None) -> bytes:
    """A table as the readers of files take it.

    Args:
        context: who asks.
        table: the text of a file, CSV or JSON.
        items: the table as forms; one of the two is None.

    Raises:
        Invalid: both are given, or none, or more lines than one request may have.
    """
    if (table is None) == (items is None):
        raise Invalid("give 'table' or 'items': one of the two")
    if table is not None:
        return table.encode()
    assert items is not None
    return json.dumps([item.model_dump(mode="json", exclude_none=True) for item in items]).encode()


def require_few(context: Context, lines: int) -> None:
    """Returns if one request may have so many lines; raises Invalid."""
    if lines > MAX_LINES and not context.caller.is_local:
        raise Invalid(f"{lines} lines are too many for one request, which may have {MAX_LINES}: divide the table")
