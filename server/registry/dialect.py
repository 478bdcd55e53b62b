"""What SQLite and PostgreSQL have each in their own way: locks of rows, sequences, hashes, partitions, and their own clock.

All else is the same SQL on both. SQLite has one writer at a time, so where PostgreSQL locks a row, SQLite has locked everything
already; it numbers rows by the rows themselves, and its clock is this machine's.
"""

from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, Table, func, select, text
from sqlalchemy import column as sql_column
from sqlalchemy import table as sql_table
from sqlalchemy.orm import InstrumentedAttribute, Session

SPREAD = "spread"
"""The function that `Database` gives SQLite for `spread`."""
_Query = TypeVar("_Query", bound="Select[Any]")
_LAST = text("SELECT pg_sequence_last_value(CAST(pg_get_serial_sequence(:table, :column) AS regclass))")
_OWN_PLAN = text("SET LOCAL plan_cache_mode = force_custom_plan")
REST = "rest"
"""Ends the name of the partition that takes what no other one does."""
_PARTITIONS = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = CAST(:table AS regclass)"
)
_BRIEFLY = text("SET LOCAL lock_timeout = '3s'")
_SET = text("SELECT setval(pg_get_serial_sequence(:table, :column), :value)")


def is_sqlite(session: Session) -> bool:
    """Whether a session's database is SQLite."""
    return session.get_bind().dialect.name == "sqlite"


def locking(statement: str, *, sqlite: bool) -> str:
    """A SELECT whose rows stay locked until the transaction ends."""
    return statement if sqlite else f"{statement} FOR UPDATE"


def by_bytes(session: Session, column: InstrumentedAttribute[str]) -> ColumnElement[str]:
    """A column that is compared and ordered by its bytes, as SQLite does anyway, and not as a language has it."""
    return column.expression if is_sqlite(session) else column.collate("C")


def spread(session: Session, column: ColumnElement[str]) -> ColumnElement[Any]:
    """The SHA-256 of a column, in an order that is the same on both."""
    return getattr(func, SPREAD)(column) if is_sqlite(session) else func.sha256(func.convert_to(column, "UTF8"))


def greatest(*, sqlite: bool) -> str:
    """The function for the greatest of several values."""
    return "max" if sqlite else "greatest"


def least(*, sqlite: bool) -> str:
    """The function for the least of several values."""
    return "min" if sqlite else "least"


def own_clock_now(*, sqlite: bool) -> str:
    """Whole seconds since 1970 UTC by `own_clock`, in a statement; where there is none, a parameter."""
    return "CAST(? AS BIGINT)" if sqlite else "CAST(floor(extract(epoch FROM clock_timestamp())) AS BIGINT)"


def plan_each_time(session: Session) -> None:
    """Has PostgreSQL plan each statement of this transaction for its own values, also one that it has prepared.

    After a few executions it would use one plan for all values, which fits no selection of few among many: counting a fleet of
    300 among 30,000 devices took 4 seconds by that plan, and 0.1 by its own.
    """
    if not is_sqlite(session):
        session.execute(_OWN_PLAN)


def passing_locked(query: _Query) -> _Query:
    """A query that locks its rows, without those that another transaction has locked."""
    return query.with_for_update(skip_locked=True)


def highest_given(session: Session, table: Table) -> int:
    """The greatest number that a table's own numbering has given so far, also to rows that are gone; 0 if it numbers none."""
    column = table.autoincrement_column
    if column is None or column.autoincrement is not True:
        return 0
    highest: int = session.scalar(select(func.max(column))) or 0
    if is_sqlite(session):
        return highest
    return max(highest, session.scalar(_LAST, {"table": table.name, "column": column.name}) or 0)


def go_on_behind(session: Session, table: Table, highest: int) -> None:
    """Lets a table's own numbering go on behind a number: rows that bring their own number do not move a sequence."""
    column = table.autoincrement_column
    if column is not None and column.autoincrement is True and highest and not is_sqlite(session):
        session.execute(_SET, {"table": table.name, "column": column.name, "value": highest})


def own_clock(session: Session) -> float | None:
    """The time of the database's machine, seconds since 1970 UTC; None if that is this machine for sure."""
    if is_sqlite(session):
        return None
    return float(session.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)


def make_partitions(session: Session, table: Table, begin: int, width: int, number: int) -> int:
    """Makes the partitions of a table by ranges that are missing; returns how many that were. SQLite has none.

    A range of which the partition for the rest has rows already stays there: those rows would have to move first.

    Args:
        session: of a writing transaction.
        table: partitioned by ranges of whole numbers; the partition for the rest exists.
        begin: of the first range.
        width: of each range.
        number: of ranges.
    """
    if is_sqlite(session):
        return 0
    session.execute(_BRIEFLY)
    known, made = set(session.scalars(_PARTITIONS, {"table": table.name})), 0
    column = table.dialect_options["postgresql"]["partition_by"].partition("(")[2].rstrip(")")
    rest = sql_table(f"{table.name}_{REST}", sql_column(column))
    for first in range(begin, begin + width * number, width):
        name = f"{table.name}_{first}"
        there = select(rest.c[column]).where(rest.c[column] >= first, rest.c[column] < first + width).limit(1)
        if name in known or session.scalar(there) is not None:
            continue
        session.execute(text(f"CREATE TABLE {name} PARTITION OF {table.name} FOR VALUES FROM ({first}) TO ({first + width})"))
        made += 1
    return made


def drop_partitions(session: Session, table: Table, before: int, width: int) -> int:
    """Drops the partitions whose ranges end at a number or before it, with all rows; returns how many. SQLite has none.

    Args:
        session: of a writing transaction.
        table: as for `make_partitions`.
        before: where the rows begin that stay.
        width: of each range.
    """
    if is_sqlite(session):
        return 0
    session.execute(_BRIEFLY)
    dropped = 0
    for name in session.scalars(_PARTITIONS, {"table": table.name}).all():
        first = name.removeprefix(f"{table.name}_")
        if first.isdigit() and int(first) + width <= before:
            session.execute(text(f"DROP TABLE {name}"))
            dropped += 1
    return dropped
