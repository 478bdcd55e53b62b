"""Gives one process the registry for itself: nobody else has it open, and nobody else can use it until the block ends.

SQLite      A connection with `locking_mode = EXCLUSIVE` opens a file in WAL mode only if no other process, and no other
            connection of this one, has it open; afterwards nobody else can open it.
PostgreSQL  All tables are locked, for readers too, so that a server that starts now waits. `pg_stat_activity` shows who else
            is connected to the database: a server that is idle holds no lock.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from server.base.errors import RegistryError
from server.registry.database import OPERATOR, Database

from .copying import tables

TRIES, PAUSE_S = 20, 0.1
"""A connection that has just been closed may be there for a moment."""
_OTHERS = text(
    "SELECT pid, usename, host(client_addr) FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid() AND usesysid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend' "
    "ORDER BY pid LIMIT 5"
)
_LOCKED = "55P03"
"""PostgreSQL's lock_not_available."""


@contextmanager
def sole_access(database: Database, pause: Callable[[float], None] = time.sleep) -> Iterator[Session]:
    """Opens a transaction that sees one moment, and that only this process can use; it commits at the end.

    Args:
        database: none of its connections is open.
        pause: waits so many seconds.

    Raises:
        RegistryError: another process uses the registry.
    """
    engine = _exclusive(database) if database.is_sqlite else _repeatable(database)
    try:
        with Session(engine, expire_on_commit=False) as session:
            session.info[OPERATOR] = database.operator
            if database.is_sqlite:
                _begin(session, database)
            else:
                _lock(session, database, pause)
            yield session
            session.commit()
    finally:
        engine.dispose()


def _used(database: Database, by: str) -> RegistryError:
    return RegistryError(
        f"{by} {database.name}; stop the license server on every machine (systemctl stop license-server), let other commands "
        "end, then run this again; nothing was changed"
    )


def _exclusive(database: Database) -> Engine:
    engine = create_engine(database.url, poolclass=NullPool, connect_args={"timeout": TRIES * PAUSE_S})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        # First of all: only a connection that has not read yet can be the only one.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _begin(session: Session, database: Database) -> None:
    try:
        session.connection()
    except DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise _used(database, "another process uses") from None
        raise


def _repeatable(database: Database) -> Engine:
    return create_engine(database.url, poolclass=NullPool, isolation_level="REPEATABLE READ")


def _lock(session: Session, database: Database, pause: Callable[[float], None]) -> None:
    names = ", ".join(f'"{table.name}"' for table in tables())
    for left in reversed(range(TRIES)):
        try:
            # Before anything is read: what the transaction sees is from when it has the locks.
            session.execute(text(f"LOCK TABLE {names}, alembic_version IN ACCESS EXCLUSIVE MODE NOWAIT"))
            others = session.execute(_OTHERS).all()
            if not others:
                return
            said = ", ".join(f"process {pid} of {user}" + (f" from {host}" if host else "") for pid, user, host in others)
            refused = _used(database, f"other connections ({said}) use")
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCKED:
                raise
            refused = _used(database, "another process uses")
        session.rollback()
        if not left:
            raise refused
        pause(PAUSE_S)
