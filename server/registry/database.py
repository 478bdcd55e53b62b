"""The registry's database: one SQLite file, or PostgreSQL. Transactions that write take their locks at once."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as BusyError
from sqlalchemy.orm import Session

from server.base.errors import RegistryError

from .models import REVISION, Counter

BUSY_S = 10
POOL_SIZE = 16


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"


class Database:
    """The registry's database.

    Args:
        url: of SQLAlchemy; `sqlite:///PATH` or `postgresql+psycopg://…`.

    Raises:
        RegistryError: it is no such URL.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = make_url(url)
        except ArgumentError:
            raise RegistryError(f"{url!r} is no database URL: sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME") from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if not self.is_sqlite and self.url.get_backend_name() != "postgresql":
            raise RegistryError("the database must be SQLite or PostgreSQL")
        self.engine = _engine(self.url, self.is_sqlite)
        self._reader = self.engine.execution_options(reading=True)
        # SQLite's own way to wait for another writer is to sleep and ask again, longer each time; threads of one process
        # need not.
        self._writing = threading.Lock() if self.is_sqlite else None
        self._here = threading.local()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session in a transaction: all of it is done, or nothing. Within `unit`, a part of that one.

        Raises:
            SQLAlchemyError: the database does not answer, or others write for too long.
        """
        joined = self._joined()
        if joined is not None:
            with joined.begin_nested():
                yield joined
            return
        with self._turn(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads; it waits for no writer. Within `unit`, that one."""
        joined = self._joined()
        if joined is not None:
            yield joined
            return
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def unit(self) -> Iterator[Session]:
        """One transaction, which every `transaction` and `reading` of this thread is a part of until it ends.

        A part that fails takes back its own changes only.
        """
        if self._joined() is not None:
            raise RuntimeError("a unit within a unit")
        with self.transaction() as session:
            self._here.session = session
            try:
                yield session
            finally:
                self._here.session = None

    def _joined(self) -> Session | None:
        found: Session | None = getattr(self._here, "session", None)
        return found

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._writing is None:
            yield
            return
        if not self._writing.acquire(timeout=BUSY_S):
            raise BusyError(f"other requests have been writing for {BUSY_S} s")
        try:
            yield
        finally:
            self._writing.release()

    def revision(self) -> str | None:
        """The revision of the schema; None for an empty database."""
        with self._reader.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return found

    def ready(self) -> None:
        """Returns if the database answers and has the schema of this program.

        Raises:
            RegistryError: it has not, or does not answer; the text says what to do.
        """
        try:
            found = self.revision()
        except SQLAlchemyError as error:
            raise RegistryError(f"the database does not answer: {_brief(error)}") from None
        if found != REVISION:
            from .migrating import check_known

            check_known(found)
            raise RegistryError(
                f"the database has revision {found or 'none'}, this program needs {REVISION}: run 'license-server migrate'"
            )

    def migrate(self) -> None:
        """Brings the schema to this program's revision.

        Raises:
            RegistryError: it cannot be done.
        """
        from .migrating import check_known, upgrade

        if self.is_sqlite and self.url.database:
            path = Path(self.url.database)
            # Made before SQLite would make it with the mode of the umask.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        try:
            check_known(self.revision())
            upgrade(self.engine)
        except SQLAlchemyError as error:
            raise RegistryError(f"the database could not be migrated: {_brief(error)}") from None

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def _brief(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0][:300]


def _engine(url: Any, is_sqlite: bool) -> Engine:
    if not is_sqlite:
        return create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, pool_pre_ping=True, pool_timeout=BUSY_S)
    engine = create_engine(url, connect_args={"timeout": BUSY_S}, pool_size=POOL_SIZE, max_overflow=POOL_SIZE)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # pysqlite begins transactions late and by its own rules; here they are begun by the next listener.
        connection.isolation_level = None
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def next_number(session: Session, name: str, at_least: int = 0) -> int:
    """The next value of a counter; its row stays locked until the transaction ends, so that no number is left out.

    Args:
        session: a transaction.
        name: of the counter.
        at_least: goes on from there: numbers of the time are above all earlier ones also where those have been lost.
    """
    row = session.get(Counter, name, with_for_update=True, populate_existing=True)
    if row is None:
        raise RuntimeError(f"the counter {name} is missing")
    row.value = max(row.value + 1, at_least)
    session.flush()
    return row.value


def skip_ahead(session: Session, name: str, value: int) -> bool:
    """Has a counter go on above a value; whether it was below."""
    row = session.get(Counter, name, with_for_update=True, populate_existing=True)
    if row is None or row.value >= value:
        return False
    row.value = value
    session.flush()
    return True


def present_number(session: Session, name: str) -> int:
    """The value of a counter."""
    row = session.get(Counter, name)
    return 0 if row is None else row.value


def ping(database: Database) -> None:
    """Raises SQLAlchemyError if the database does not answer."""
    with database.engine.connect() as connection:
        connection.execute(text("SELECT 1"))
