"""The schema: what the migrations make is what the models say, from any revision, on both databases."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from server.base.errors import RegistryError
from server.registry.database import Database, sqlite_url
from server.registry.migrating import alembic_config
from server.registry.models.core import OLDEST_PROGRAM, REVISION, Setting
from server.registry.models.monitoring import FleetObservation
from server.registry.models.tables import Base
from tests.support.serverside import ServerSide, open_server

REVISIONS = [script.revision for script in reversed(list(ScriptDirectory.from_config(alembic_config()).walk_revisions()))]


@pytest.fixture
def database(url: str | None, tmp_path: Path) -> Iterator[Database]:
    made = Database(url or sqlite_url(tmp_path / "empty.db"))
    yield made
    made.close()


def to(database: Database, revision: str, act: Callable[..., None] = command.upgrade) -> None:
    database.make_file()
    with database.engine.connect() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        act(config, revision)


def differences(database: Database) -> list[object]:
    def belongs(found: object, name: str | None, kind: str, _reflected: bool, _other: object) -> bool:
        """The comparison does not know that an index may be for one of the databases, and takes partitions for tables."""
        if kind == "table" and str(name).startswith(f"{FleetObservation.__tablename__}_"):
            return False
        only = getattr(found, "_ddl_if", None)
        return kind != "index" or only is None or only.dialect == database.engine.dialect.name

    with database.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "include_object": belongs}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))


@pytest.mark.parametrize("start", REVISIONS)
def test_from_any_revision_the_schema_becomes_that_of_the_models(database: Database, start: str) -> None:
    to(database, start)
    assert database.revision() == start
    database.migrate()
    assert database.revision() == REVISION == REVISIONS[-1]
    assert differences(database) == []
    database.migrate()  # does nothing more
    database.ready()


def test_a_difference_would_be_seen(database: Database) -> None:
    database.migrate()
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE agent DROP COLUMN last_seen"))
    assert "last_seen" in str(differences(database))


def test_all_of_it_can_be_taken_back(database: Database) -> None:
    database.migrate()
    to(database, "base", command.downgrade)
    assert database.revision() is None
    with database.engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    database.migrate()
    assert differences(database) == []


def test_another_revision_is_refused_with_what_to_do(database: Database) -> None:
    database.make_file()
    with pytest.raises(RegistryError, match=r"has revision none, this program needs .*license-server migrate"):
        database.ready()
    database.migrate()
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for act in (database.ready, database.migrate):
        with pytest.raises(RegistryError, match="has revision 9999, which this program does not know; run the newer release"):
            act()


def test_a_server_with_an_old_schema_does_not_open(directory: Path) -> None:
    server = open_server(directory)
    with server.database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    server.close()
    with pytest.raises(RegistryError, match="revision 0000"):
        open_server(directory)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("nonsense", "is not a database URL"),
        ("mysql://x/y", "must be SQLite or PostgreSQL"),
        ("postgresql+psycopg://license@/x?host=/nonexistent", "does not answer"),
    ],
)
def test_a_database_that_cannot_be_used_is_told(url: str, text: str) -> None:
    with pytest.raises(RegistryError, match=text):
        Database(url).ready()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"this is no database file" * 100)
    database = Database(sqlite_url(path))
    with pytest.raises(RegistryError, match="not a database"):
        database.ready()
    database.close()


def test_sqlite_is_set_up_to_lose_nothing(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "x.db"))
    database.migrate()
    with database.engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
        }
    database.close()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1, "busy_timeout": 10_000}


@pytest.mark.parametrize(("oldest", "served"), [("0005", True), ("9998", False), (None, False)])
def test_a_newer_schema_is_served_if_it_admits_this_program(database: Database, oldest: str | None, served: bool) -> None:
    database.migrate()
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        if oldest is not None:
            connection.execute(text("INSERT INTO setting (name, value) VALUES ('oldest_program', :o)"), {"o": oldest})
    if served:
        database.ready()
        return
    with pytest.raises(RegistryError, match="which this program does not know"):
        database.ready()


def test_a_server_says_which_programs_may_serve_it(server: ServerSide) -> None:
    with server.database.read() as session:
        assert session.get_one(Setting, "oldest_program").value == OLDEST_PROGRAM <= REVISION
