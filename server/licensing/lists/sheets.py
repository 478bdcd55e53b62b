"""Reads and writes tables of licenses as CSV and JSON. Pure.

A cell of CSV that a spreadsheet would run as a formula is written with an apostrophe before it, and read without. A file may
begin with a byte order mark, and may have semicolons or tabs between its cells, as spreadsheets of many countries write it.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from common.text import forbidden_in
from contracts.claims import MAX_ID_CHARS
from server.base.errors import Invalid
from server.licensing.sales.orders import Wish

from .license_list import LicenseRow

MAX_BYTES = 64 * 1024 * 1024
COLUMNS = ("license_id", "agent", "policy", "customer", "site", "subject", "features", "metadata", "not_before", "expires")
"""What an order may say; in a list of many, `|` is between them."""
TOLD = ("product", "state", "created_at", "updated_at", "revoked_at", "suspended_at", "revision")
"""What an export says besides. An import passes over it, but for the state."""
_FORMULA = re.compile(r"\s*['=+\-@\uff1d\uff0b\uff0d\uff20]")
MAX_SAID = 200
"""Characters of what is wrong with a cell: it may quote the cell, which may be as long as the file."""
Time = Callable[[str, bool], int]
"""Makes seconds since 1970 UTC of a text; the flag says whether something ends then. Raises ValueError."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A line of a file that orders a license.

    Attributes:
        line: where it is in the file: a line of CSV, an entry of JSON; 1 is the first.
        agent: the agent that gets it; None for no machine.
        wish: what is ordered.
        dated: whether the line names the end itself, and not by a duration from now.
        problem: why the line cannot be read; None if it can.
    """

    line: int
    agent: str | None
    wish: Wish
    dated: bool = False
    problem: str | None = None


def defused(cell: object) -> object:
    """A cell that no spreadsheet runs as a formula."""
    return "'" + cell if isinstance(cell, str) and _FORMULA.match(cell) else cell


def plain(cell: str) -> str:
    """What `defused` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, each cell defused; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["" if cell is None else defused(cell) for cell in row] for row in rows])
    return text.getvalue()


def cells_of(row: LicenseRow, told: Callable[[int | None], str]) -> dict[str, object]:
    """A license as an export has it.

    Args:
        row: the license.
        told: writes a time.
    """
    times = {name: told(getattr(row, name)) for name in ("created_at", "updated_at", "revoked_at", "suspended_at")}
    return {
        "license_id": row.license_id,
        "agent": row.agent_id,
        "policy": row.policy,
        "customer": row.customer,
        "site": row.site,
        "subject": row.subject,
        "features": list(row.features),
        "metadata": row.metadata,
        "not_before": told(row.not_before),
        "expires": told(row.expires),
        "product": row.product,
        "state": row.state,
        **times,
        "revision": row.revision,
    }


def as_cells(content: dict[str, object]) -> list[object]:
    """The same as cells of CSV, in the order of `COLUMNS` and `TOLD`."""
    return [_joined(content[name]) for name in (*COLUMNS, *TOLD)]


def _joined(value: object) -> object:
    if isinstance(value, list):
        plain_list = all("|" not in each and each == each.strip() and not each.startswith("[") for each in value)
        return "|".join(value) if plain_list else json.dumps(value, ensure_ascii=False)
    return (json.dumps(value, ensure_ascii=False) if value else None) if isinstance(value, dict) else value


def wanted_in(data: bytes, time: Time) -> list[Wanted]:
    """What a file orders, line by line. A line that cannot be read is among them, with its problem.

    Args:
        data: the file, CSV or JSON.
        time: reads a time.

    Raises:
        Invalid: the file as a whole cannot be read; the text says where.
    """
    return [_wanted(line, cells, time) for line, cells in lines_in(data, (*COLUMNS, *TOLD))]


def lines_in(data: bytes, columns: tuple[str, ...]) -> list[tuple[int, dict[str, Any] | str]]:
    """The lines of a file, each with its cells by column, or with what is wrong with it.

    Args:
        data: the file, CSV or JSON.
        columns: those that it may have.

    Raises:
        Invalid: the file as a whole cannot be read.
    """
    text = text_of(data)
    return _json_lines(text, columns) if text.lstrip()[:1] in ("[", "{") else _csv_lines(text, columns)


def text_of(data: bytes) -> str:
    """The text of a file, without a byte order mark. Raises Invalid: it is too large, or not UTF-8."""
    if len(data) > MAX_BYTES:
        raise Invalid(f"the file has {len(data)} bytes, the limit is {MAX_BYTES}: divide it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Invalid(f"line {line} of the file is not UTF-8: save it as 'CSV UTF-8'") from None


def _json_lines(text: str, columns: tuple[str, ...]) -> list[tuple[int, dict[str, Any] | str]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the file is not JSON: {str(error)[:100]}") from None
    if not isinstance(content, list):
        raise Invalid("the file must be a JSON array with an object for each line")
    found: list[tuple[int, dict[str, Any] | str]] = []
    for number, entry in enumerate(content, 1):
        unknown = set(entry) - set(columns) if isinstance(entry, dict) else set()
        if not isinstance(entry, dict) or unknown:
            found.append((number, f"unknown member {min(unknown)[:80]!r}" if unknown else "it is not an object"))
        else:
            found.append((number, entry))
    return found


def _csv_lines(text: str, columns: tuple[str, ...]) -> list[tuple[int, dict[str, Any] | str]]:
    head = text.split("\n", 1)[0]
    between = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    found: list[tuple[int, dict[str, Any] | str]] = []
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not names:
                names = [plain(cell.strip()) for cell in cells]
                _check_head(names, columns)
            elif len(cells) > len(names):
                found.append((line, f"it has {len(cells)} cells, the first line has {len(names)}"))
            elif any(cell.strip() for cell in cells):
                found.append((line, {name: plain(cell.strip()) for name, cell in zip(names, cells, strict=False)}))
            line = reader.line_num + 1
    except csv.Error as error:
        raise Invalid(f"line {line} of the file is not CSV: {error}") from None
    if not names:
        raise Invalid(f"the file is empty: its first line names columns ({', '.join(columns[:4])}, …)")
    return found


def _check_head(names: list[str], columns: tuple[str, ...]) -> None:
    for name in names:
        if name not in columns:
            raise Invalid(f"the file has an unknown column {ascii(name)[:80]}; use {', '.join(columns)}")
        if names.count(name) > 1:
            raise Invalid(f"the file has the column {name!r} twice")


def _wanted(line: int, cells: dict[str, Any] | str, time: Time) -> Wanted:
    nothing = Wanted(line, None, Wish())
    if isinstance(cells, str):
        return Wanted(line, None, nothing.wish, problem=cells)
    try:
        texts = {name: _text(name, cells) for name in ("license_id", "agent", "policy", "customer", "site", "subject", "state")}
        ends, begins = _time(cells, "expires", time), _time(cells, "not_before", time)
        wish = Wish(
            license_id=texts["license_id"],
            policy=texts["policy"],
            customer=texts["customer"],
            site=texts["site"],
            subject=texts["subject"],
            features=_features(cells.get("features")),
            metadata=_metadata(cells.get("metadata")),
            not_before=begins,
            expires=ends,
        )
    except ValueError as error:
        return Wanted(line, None, nothing.wish, problem=str(error))
    dated = ends is not None and not str(cells["expires"]).startswith("+")
    closed = texts["state"] if texts["state"] in ("revoked", "suspended") else None
    said = None if closed is None else f"it is {closed} where it was exported, and would be active here: leave it out"
    return Wanted(line, texts["agent"], wish, dated, said)


def _text(name: str, cells: dict[str, Any]) -> str | None:
    value = cells.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be a text")
    if value is not None and (len(value) > MAX_ID_CHARS or forbidden_in(value) is not None):
        raise ValueError(f"{name} must be one line of at most {MAX_ID_CHARS} characters")
    return value or None


def _time(cells: dict[str, Any], name: str, time: Time) -> int | None:
    value = cells.get(name)
    if value in (None, ""):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{name} must be a time")
    try:
        return time(str(value), name == "expires")
    except ValueError as error:
        raise ValueError(f"{name}: {str(error)[:MAX_SAID]}") from None


def _features(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (
            _parsed(value, "features") if value.startswith("[") else [each.strip() for each in value.split("|") if each.strip()]
        )
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("features must be names with | between them, or a JSON array of names")
    return tuple(value)


def _metadata(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        value = _parsed(value, "metadata") if value else None
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError('metadata must be a JSON object of texts, as {"shop": "7"}')
    return value


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not JSON") from None
