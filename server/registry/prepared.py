"""The statements of an ordinary check-in, prepared by the database's driver, and the transactions that run them.

Only they, and the one of `allowance`, do not go through SQLAlchemy. A fleet's check-ins are nearly all that a license server
does. Building, compiling and mapping a statement costs more than the database's work for it (ADR 34). The tables are those of
`models`; a test compares every column that is named here.

Each statement has a fresh view of the registry, so what is read after the lock is what holds until the transaction ends.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from .database import Database
from .dialect import locking

LOCK_AGENT = (
    "SELECT id, status, identity_key, urgent, last_seen, audit_seq, audit_head, seen_version, seen_at, audit_turns, halted_at, "
    "revocations, capabilities, license_changes FROM agent WHERE id = (SELECT agent_id FROM certificate WHERE fingerprint = ?)"
)
STANDING = (
    "SELECT c.state, c.used_at, "
    "(SELECT max(o.used_at) FROM certificate o WHERE o.agent_id = c.agent_id AND o.state = 'active' AND o.issued_at <= ?), "
    "(SELECT count(*) FROM kept_reply k WHERE k.agent_id = c.agent_id), "
    "(SELECT count(*) FROM kept_reply k WHERE k.agent_id = c.agent_id AND k.request_id = ?), "
    "(SELECT value FROM counter WHERE name = 'revocations.base'), "
    "(SELECT value FROM counter WHERE name = 'license_changes.base'), "
    "s.version, s.state, s.key_check, s.valid_until "
    "FROM certificate c LEFT JOIN secret s ON s.agent_id = c.agent_id AND (s.version = ? OR s.state = 'ACTIVE' "
    "OR s.version = (SELECT max(n.version) FROM secret n WHERE n.agent_id = c.agent_id)) "
    "WHERE c.fingerprint = ?"
)
NOTE_CONTACT = (
    "UPDATE agent SET last_seen = ?, audit_seq = ?, audit_head = ?, seen_version = ?, seen_at = ?, audit_turns = ? WHERE id = ?"
)
KEEP_REPLY = "INSERT INTO kept_reply (agent_id, request_id, digest, sealed, kept_at, kept_until) VALUES (?, ?, ?, ?, ?, ?)"
CERTIFICATE = (
    "SELECT a.status, a.halted_at, c.state, c.used_at, "
    "(SELECT max(o.used_at) FROM certificate o WHERE o.agent_id = c.agent_id AND o.state = 'active' AND o.issued_at <= ?) "
    "FROM certificate c JOIN agent a ON a.id = c.agent_id WHERE c.fingerprint = ?"
)
ALL = (LOCK_AGENT, STANDING, NOTE_CONTACT, KEEP_REPLY, CERTIFICATE)
LOCK_NOT_AVAILABLE = "55P03"
"""PostgreSQL's code of the error that a statement ends with when it has waited for a lock as long as it may (appendix A)."""


class DriverFailed(SQLAlchemyError):
    """The driver's own error, as one of SQLAlchemy's: what catches those catches this one."""


class DriverBusy(DriverFailed):
    """Another transaction has held a lock for too long: to try again at once would wait as long again."""


Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Statements:
    """What runs the statements of one transaction.

    Attributes:
        run: the driver's own `execute`.
    """

    run: Any
    postgresql: bool

    def lock(self, statement: str, *parameters: object) -> Row | None:
        """The row of a statement, which stays locked until the transaction ends; None if there is none."""
        return self._cursor(locking(statement, sqlite=not self.postgresql), parameters).fetchone()  # type: ignore[no-any-return]

    def rows(self, statement: str, *parameters: object) -> list[Row]:
        """All rows of a statement."""
        return self._cursor(statement, parameters).fetchall()  # type: ignore[no-any-return]

    def write(self, statement: str, *parameters: object) -> None:
        """Runs a statement that has no rows."""
        self._cursor(statement, parameters)

    def _cursor(self, statement: str, parameters: tuple[object, ...]) -> Any:
        if self.postgresql:
            return self.run(statement.replace("?", "%s"), parameters, prepare=True)
        return self.run(statement, parameters)


class Prepared:
    """Opens transactions of the driver.

    Args:
        database: the registry's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def write(self) -> Iterator[Statements]:
        """Opens a transaction that commits at the end of the block, or rolls back if the block raises.

        Raises:
            SQLAlchemyError: the database does not answer, or other transactions hold its lock for too long.
        """
        with self._connection(writing=True) as (connection, statements):
            try:
                yield statements
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    @contextmanager
    def read(self) -> Iterator[Statements]:
        """Opens a transaction that only reads. It waits for no writer."""
        with self._connection(writing=False) as (connection, statements):
            try:
                yield statements
            finally:
                connection.rollback()

    @contextmanager
    def _connection(self, *, writing: bool) -> Iterator[tuple[Any, Statements]]:
        try:
            with self._database.driver(writing=writing) as pooled:
                connection = pooled.dbapi_connection
                assert connection is not None
                postgresql = not self._database.is_sqlite
                try:
                    if not postgresql:
                        connection.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
                    yield connection, Statements(connection.execute, postgresql)
                except _errors_of(self._database) as error:
                    pooled.invalidate(error)
                    raise
        except _errors_of(self._database) as error:
            # Also where no connection could be made: the pool does not translate that.
            kind = DriverBusy if getattr(error, "sqlstate", None) == LOCK_NOT_AVAILABLE else DriverFailed
            raise kind(f"the database's driver failed: {type(error).__name__}") from error


def _errors_of(database: Database) -> type[Exception]:
    """What the database's driver raises. A server with SQLite does without the other driver, a twentieth of a second."""
    if database.is_sqlite:
        return sqlite3.Error
    import psycopg

    return psycopg.Error
