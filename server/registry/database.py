"""Opens the registry's database, one SQLite file or PostgreSQL, and its transactions.

Every function that works on the registry takes the session of its caller, who decides what belongs to one transaction. A
transaction that writes takes SQLite's lock when it begins.
"""

import contextlib
import copy
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from sqlalchemy import Engine, case, create_engine, delete, event, inspect, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as BusyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection

from server.base.errors import RegistryError

from .agentcounts import WritingSession
from .dialect import SPREAD
from .models import tables as tables  # loads all models: a session needs those that its own refer to
from .models.core import REVISION, Counter, Setting

BUSY_S = 10
IDLE_S = 60
"""How long PostgreSQL lets a transaction do nothing: of a process that was halted, or a machine that lost its power."""
_KEPT = "kept"
"""In `session.info`: the rows that `Database.keep_read` keeps."""
OPERATOR = "operator"
"""In `session.info`: `Database.operator`."""
_SECRETS = ("password", "sslpassword")
"""Parameters of libpq that are secret."""
MOVED = "registry.moved"
"""The setting that closes a registry which was moved to another database; its value says where that is."""
UNUSED = "registry.unused"
"""The setting of a copy that nobody has opened; its value says what it is a copy of."""
_secrets: list[str] = []
"""The passwords of this process's databases: no error text quotes one."""
POOL_SIZE = 8
"""Connections to PostgreSQL that are kept, of each of two pools."""
MORE = 4
"""Connections beyond that, for a moment, of the first pool. Who finds none waits for `BUSY_S`."""
MOST_CONNECTIONS = 2 * POOL_SIZE + MORE
"""Connections to PostgreSQL that a process has at most."""


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"


class Database:
    """The registry's database.

    Args:
        url: in SQLAlchemy's form: `sqlite:///PATH` or `postgresql+psycopg://…`.

    Raises:
        RegistryError: the URL has another form, or names another database.
    """

    def __init__(self, url: str) -> None:
        # No text here repeats what was given: it may be a URL with a password that was mistyped.
        try:
            self.url = make_url(url)
            self.url.get_dialect()
        except (ArgumentError, ValueError):
            raise RegistryError(
                "what was given is not a database URL; write sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME, and "
                "%-encode special characters in a password"
            ) from None
        if "@" in (self.url.host or ""):
            # Part of a password would stand where the host is, in every error.
            raise RegistryError("there is more than one '@' in the database URL; write %40 for those in a name or password")
        _secrets.extend(secret for secret in passwords_in(self.url) if secret not in _secrets)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if not self.is_sqlite and self.url.get_backend_name() != "postgresql":
            raise RegistryError(f"the database is {self.url.get_backend_name()}; it must be SQLite or PostgreSQL")
        if self.is_sqlite and self.url.database in (None, "", ":memory:"):
            raise RegistryError("that URL names no file; write sqlite:////DIRECTORY/server.db")
        try:
            self.engine = _engine(self.url, self.is_sqlite)
        except ImportError:
            raise RegistryError(
                f"there is no driver for {self.url.drivername}; write sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME"
            ) from None
        self._reader = self.engine.execution_options(reading=True)
        self._drivers = self.engine if self.is_sqlite else _driver_engine(self.url)
        # SQLite waits for another writer by sleeping and trying again, longer each time. Threads of one process take turns.
        self._writing = threading.Lock() if self.is_sqlite else None
        self._writers: set[int] = set()
        self.operator: dict[str, str] = {}
        """Who runs the command that has opened the database: fields that `audit.record` adds to what `admin` does."""

    def as_operator(self, fields: dict[str, str]) -> "Database":
        """The same database for somebody else: `audit.record` adds these fields to what they do in its transactions."""
        other = copy.copy(self)
        other.operator = fields
        return other

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Opens a transaction that commits at the end of the block, or rolls back if the block raises.

        A part of it that may fail alone goes into `session.begin_nested()`.

        Raises:
            SQLAlchemyError: the database does not answer, or other transactions hold its lock for more than `BUSY_S`.
            RuntimeError: this thread is writing already; two transactions of one thread would wait for each other.
        """
        thread = threading.get_ident()
        if thread in self._writers:
            raise RuntimeError("a transaction within a transaction: pass the session instead")
        self._writers.add(thread)
        try:
            with self._turn(), WritingSession(self.engine, expire_on_commit=False) as session, session.begin():
                session.info[OPERATOR] = self.operator
                yield session
        finally:
            self._writers.discard(thread)

    @staticmethod
    def keep_read(session: Session) -> None:
        """Has a session of `write` keep what it reads from now on.

        By default it forgets a row that nobody holds any more, and reads it again. That is right for an act on thousands of
        rows, and costs one on a few of them a third of its statements.
        """
        session.info[_KEPT] = []

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Opens a transaction that only reads. It waits for no writer."""
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def driver(self, *, writing: bool) -> Iterator[PoolProxiedConnection]:
        """Lends a connection of the driver, for `prepared`, which begins and ends its transactions.

        It is not asked beforehand whether it still works: that is another round trip, and who finds it broken tries again in
        another way.

        Raises:
            SQLAlchemyError: the database does not answer, or other transactions hold its lock for more than `BUSY_S`.
        """
        with (
            contextlib.nullcontext() if not writing else self._turn(),
            contextlib.closing(self._drivers.raw_connection()) as lent,
        ):
            yield lent

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

    @property
    def has_password(self) -> bool:
        """Whether the URL contains a password."""
        return bool(passwords_in(self.url))

    @property
    def name(self) -> str:
        """The database, for people: its file, or its URL without a password."""
        if self.is_sqlite:
            return str(self.url.database)
        return self.url.difference_update_query(_SECRETS).render_as_string(hide_password=True)

    def is_empty(self) -> bool:
        """Whether the database has no registry, not even an empty one. A SQLite file that is missing is not created.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        if self.is_sqlite and not (self.url.database and Path(self.url.database).exists()):
            return True
        with self._reader.connect() as connection:
            return not inspect(connection).has_table(Setting.__tablename__)

    def revision(self) -> str | None:
        """The revision of the schema, or None if the database is empty."""
        with self._reader.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return found

    def ready(self) -> None:
        """Returns if the database answers, has a schema that this program may serve, and its registry was not moved away.

        Raises:
            RegistryError: it does not answer, has another schema, or is closed; the text says what to do.
        """
        self.check_schema()
        with self.read() as session:
            moved = session.get(Setting, MOVED)
        if moved is not None:
            raise RegistryError(
                f"the registry in {self.name} was moved to {moved.value} and is closed; put that database into settings.toml, "
                "or run 'license-server move --reopen' to use the old one without what has happened in the new one"
            )

    def check_schema(self) -> None:
        """Returns if the database answers and has a schema that this program may serve. Raises RegistryError as `ready`."""
        self.require_file()
        try:
            found = self.revision()
        except SQLAlchemyError as error:
            raise RegistryError(f"the database {self.name} does not answer: {in_words(error)}") from None
        if found != REVISION and not self._admits_older(found):
            # As in `migrate`: Alembic only where it is needed.
            from .migrating import check_known

            check_known(found)
            raise RegistryError(
                f"the database has revision {found or 'none'}, this program needs {REVISION}; run 'license-server migrate'"
            )

    def _admits_older(self, found: str | None) -> bool:
        """Whether a newer release has migrated the database in a way that this program may go on serving."""
        if found is None or found < REVISION:
            return False
        with self.read() as session:
            row = session.get(Setting, "oldest_program")
            return row is not None and row.value <= REVISION

    def connections(self) -> int | None:
        """How many connections the database takes from users like ours; None for SQLite, which counts none."""
        if self.is_sqlite:
            return None
        with self.read() as session:
            most = int(session.scalar(text("SELECT current_setting('max_connections')")) or 0)
            return most - int(session.scalar(text("SELECT current_setting('superuser_reserved_connections')")) or 0)

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Opens a transaction that only reads, and sees one moment of the whole database, however long it takes."""
        engine = self._reader if self.is_sqlite else self._reader.execution_options(isolation_level="REPEATABLE READ")
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Migrates the schema to a revision, by default this program's.

        Raises:
            RegistryError: the database does not answer, or a newer release made it.
        """
        # Alembic takes a fifth of a second to import; only this command needs it.
        from .migrating import check_known, upgrade

        self.make_file()
        try:
            check_known(self.revision())
            upgrade(self.engine, revision)
        except SQLAlchemyError as error:
            raise RegistryError(f"the database {self.name} could not be migrated: {in_words(error)}") from None

    def require_file(self) -> None:
        """Returns unless the database is a SQLite file that is missing; raises RegistryError then."""
        if self.is_sqlite and self.url.database and not Path(self.url.database).exists():
            raise RegistryError(
                f"the registry's file {self.url.database} is missing: put it back with the files beside it that begin with its "
                "name (is its disk mounted?), or restore a backup with 'license-server restore'"
            )

    def make_file(self) -> None:
        """Creates SQLite's file, if it is missing, with mode 0600; SQLite would use the umask.

        Raises:
            RegistryError: the log of another registry lies beside it, and would be lost.
        """
        if self.is_sqlite and self.url.database:
            log = Path(f"{self.url.database}-wal")
            if log.exists() and log.stat().st_size and not Path(self.url.database).exists():
                raise RegistryError(
                    f"{log} belongs to a registry that was in {self.url.database}, and has what was written last: put that "
                    "registry back beside it, or move this file away"
                )
            file = os.open(Path(self.url.database), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(file).st_size == 0:
                    os.fchmod(file, 0o600)  # somebody may have made it beforehand
            finally:
                os.close(file)

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()
        self._drivers.dispose()


def brief(error: Exception) -> str:
    """The first line of an error of SQLAlchemy or of a driver, without any password, which a driver may quote."""
    said = (str(getattr(error, "orig", None) or error).splitlines() or [""])[0]
    for secret in _secrets:
        said = said.replace(secret, "***")
    return said[:300]


_ADVICE = (
    (("file is not a database", "malformed"), "its file is damaged: restore a backup with 'license-server restore'"),
    (("disk is full", "No space left"), "its disk is full: make room there and repeat what you did; nothing of it was kept"),
    (("disk I/O error",), "its disk is full or fails: make room there, or look into the system's log"),
)


def in_words(error: Exception) -> str:
    """`brief`, and what to do, where that is known."""
    said = brief(error)
    advice = next((advice for signs, advice in _ADVICE if any(sign in said for sign in signs)), None)
    return said if advice is None else f"{said}; {advice}"


def passwords_in(url: URL) -> list[str]:
    """The passwords in a URL, in each form that a text may quote them in, the longest first."""
    found = [url.password, *(value for name in _SECRETS for value in url.normalized_query.get(name, ()))]
    forms = {form for text in found if text for form in (text, quote(text, safe=""), quote_plus(text), repr(text)[1:-1])}
    return sorted(forms, key=len, reverse=True)


def _engine(url: Any, is_sqlite: bool) -> Engine:
    if not is_sqlite:
        engine = create_engine(url, pool_size=POOL_SIZE, max_overflow=MORE, pool_pre_ping=True, pool_timeout=BUSY_S)
        _bound_waits(engine)
        return engine

    def connect() -> sqlite3.Connection:
        # Never creates the file: an empty one in place of a registry whose disk is not mounted would cost it its log (-wal).
        name = f"file:{quote(str(Path(url.database).absolute()))}?mode=rw"
        return sqlite3.connect(name, uri=True, timeout=BUSY_S, check_same_thread=False)

    engine = create_engine(url, creator=connect, pool_size=2 * POOL_SIZE, max_overflow=2 * POOL_SIZE)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # pysqlite begins transactions late and by its own rules. Turn that off: the next listener begins them.
        connection.isolation_level = None
        connection.create_function(SPREAD, 1, _spread, deterministic=True)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


@event.listens_for(WritingSession, "loaded_as_persistent")
@event.listens_for(WritingSession, "pending_to_persistent")
def _keep(session: Session, row: object) -> None:
    kept = session.info.get(_KEPT)
    if kept is not None:
        kept.append(row)


def _spread(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _bound_waits(engine: Engine) -> None:
    """Ends what waits for a lock of PostgreSQL, and what holds locks and does nothing. SQLite has its own wait."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.execute(f"SET lock_timeout = '{BUSY_S}s'")
        connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_S}s'")
        connection.commit()


def _driver_engine(url: URL) -> Engine:
    """Connections to PostgreSQL for `Database.driver`."""
    # The one that was used last has its statements prepared.
    engine = create_engine(url, pool_size=POOL_SIZE, max_overflow=0, pool_timeout=BUSY_S, pool_use_lifo=True)
    _bound_waits(engine)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # A server with SQLite never loads the driver of PostgreSQL.
        from psycopg.types.numeric import Int8Dumper

        # Whole numbers of one size: the driver would prepare a statement again for each combination of sizes.
        connection.adapters.register_dumper(int, Int8Dumper)

    return engine


def next_number(session: Session, name: str, at_least: int = 0, count: int = 1) -> int:
    """Increments a counter and returns its new value. The row stays locked until the transaction ends: no number is left out.

    Args:
        session: of a writing transaction.
        name: the counter's name.
        at_least: the smallest value to return. With the time in seconds, numbers grow even if a restored backup lost some.
        count: so many numbers are taken, of which the first is returned.
    """
    session.flush()
    value = Counter.__table__.c.value
    following = case((value + 1 < at_least, at_least), else_=value + 1) + (count - 1)
    # One statement: whoever waits for the row waits for a round trip less.
    taken = update(Counter.__table__).where(Counter.__table__.c.name == name).values(value=following).returning(value)  # type: ignore[arg-type]
    last = session.scalar(taken)
    if last is None:
        raise RuntimeError(f"the counter {name} is missing")
    return int(last) - (count - 1)


def skip_ahead(session: Session, name: str, value: int) -> bool:
    """Raises a counter to a value and returns True, or returns False if it is there already."""
    row = session.get(Counter, name, with_for_update=True, populate_existing=True)
    if row is None or row.value >= value:
        return False
    row.value = value
    session.flush()
    return True


def set_number(session: Session, name: str, value: int) -> int:
    """Sets a counter, up or down, and returns the value before. The row stays locked until the transaction ends."""
    row = session.get(Counter, name, with_for_update=True, populate_existing=True)
    if row is None:
        raise RuntimeError(f"the counter {name} is missing")
    before, row.value = row.value, value
    session.flush()
    return before


def present_number(session: Session, name: str) -> int:
    """The value of a counter, without locking it."""
    return session.scalar(select(Counter.value).where(Counter.name == name)) or 0


class RegistryMoved(RegistryError):
    """The registry was moved to another database while this process served it."""


def require_here(session: Session) -> None:
    """Returns if the registry was not moved away; raises RegistryMoved."""
    moved = session.get(Setting, MOVED)
    if moved is not None:
        raise RegistryMoved(f"the registry was moved to {moved.value}; restart the server")


# A copy of a registry that nobody has used yet


def unused(database: Database) -> bool:
    """Whether the registry is a copy that nobody has opened: a move made it, and was interrupted or is under way."""
    with database.read() as session:
        return session.get(Setting, UNUSED) is not None


def begin_use(database: Database) -> None:
    """Notes that the registry is in use, if it is a copy that was unused so far."""
    if unused(database):
        with database.write() as session:
            session.execute(delete(Setting).where(Setting.name == UNUSED))
