"""Copies all rows of a registry to another one, and computes what shows that both are the same. Constant memory.

Rows come by primary key. Texts are ordered by their bytes, which is SQLite's order and PostgreSQL's collation "C", so that the
same rows have the same digest in both.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
from sqlalchemy import String, Table, collate, func, insert, select
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry.database import brief
from server.registry.dialect import go_on_behind, highest_given, is_sqlite
from server.registry.models.tables import Base

BATCH = 1000
"""Rows that are read, or written to SQLite, together."""
Row = tuple[Any, ...]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Content:
    """What a table contains.

    Attributes:
        rows: their number.
        digest: SHA-256 over all rows in order, hex.
    """

    rows: int
    digest: str


def tables() -> list[Table]:
    """All tables of the registry; a table that others refer to comes before them."""
    return list(Base.metadata.sorted_tables)


def count(session: Session) -> int:
    """The number of rows of all tables."""
    return sum(session.scalar(select(func.count()).select_from(table)) or 0 for table in tables())


def copy(source: Session, target: Session, progress: Progress) -> dict[str, Content]:
    """Copies all rows, and lets the target's sequences go on where the source's end. Returns what it has read, by table.

    Args:
        source: a transaction that sees one moment.
        target: of an empty registry with the same schema.
        progress: called with the number of rows after each batch.

    Raises:
        RegistryError: the target does not take a row.
    """
    found = {}
    for table in tables():
        with _writer(target, table) as write:
            found[table.name] = _read(source, table, write, progress)
    if not is_sqlite(target):
        _move_sequences(source, target)
    return found


def content(session: Session, progress: Progress) -> dict[str, Content]:
    """What the tables contain, by name. Reads every row."""
    return {table.name: _read(session, table, lambda _rows: None, progress) for table in tables()}


def _read(session: Session, table: Table, take: Callable[[list[Row]], None], progress: Progress) -> Content:
    postgresql = not is_sqlite(session)
    order = [
        collate(column, "C") if postgresql and isinstance(column.type, String) else column
        for column in table.primary_key.columns
    ]
    digest, encode, rows = hashlib.sha256(), msgspec.msgpack.Encoder().encode, 0
    # A cursor of the server: neither side has more than a batch in memory.
    query = select(table).order_by(*order).execution_options(yield_per=BATCH)
    with session.execute(query) as result:
        for part in result.partitions():
            batch: list[Row] = [tuple(row) for row in part]
            for row in batch:
                digest.update(encode(row))
            take(batch)
            rows += len(batch)
            progress(len(batch))
    return Content(rows, digest.hexdigest())


@contextmanager
def _writer(session: Session, table: Table) -> Iterator[Callable[[list[Row]], None]]:
    names = [column.name for column in table.columns]
    if not is_sqlite(session):
        driver: Any = session.connection().connection.driver_connection
        named = ", ".join(f'"{name}"' for name in names)
        try:
            with driver.cursor() as cursor, cursor.copy(f'COPY "{table.name}" ({named}) FROM STDIN') as into:

                def stream(batch: list[Row]) -> None:
                    for row in batch:
                        into.write_row(row)

                yield stream
        except psycopg.Error as error:
            raise RegistryError(f"the database does not take the rows of {table.name}: {brief(error)}") from None
        return

    def add(batch: list[Row]) -> None:
        if batch:
            session.execute(insert(table), [dict(zip(names, row, strict=True)) for row in batch])

    yield add


def _move_sequences(source: Session, target: Session) -> None:
    """Numbers go on behind the greatest that was ever given."""
    for table in tables():
        go_on_behind(target, table, highest_given(source, table))
