"""A transaction commits as a whole or not at all; a part of it may fail alone."""

import threading
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry import database as module
from server.registry.database import Database, sqlite_url
from server.registry.models.core import Counter, Setting
from tests.support.serverside import ServerSide
from tests.support.waiting import READY_S


def names(database: Database) -> set[str]:
    with database.read() as session:
        return names_in(session)


def names_in(session: Session) -> set[str]:
    return {name for name in ("a", "b", "c") if session.get(Setting, name) is not None}


def put(session: Session, name: str) -> None:
    with session.begin_nested():
        session.add(Setting(name=name, value="1"))


def test_a_part_that_fails_takes_back_its_own_changes_only(server: ServerSide) -> None:
    with server.database.write() as session:
        put(session, "a")
        with pytest.raises(ValueError, match="refused"), session.begin_nested():
            session.add(Setting(name="b", value="1"))
            raise ValueError("refused")
        session.expunge_all()
        with pytest.raises(SQLAlchemyError):
            put(session, "a")
        put(session, "c")
        assert names_in(session) == {"a", "c"}
    assert names(server.database) == {"a", "c"}


def test_a_transaction_that_fails_leaves_nothing_and_the_next_is_a_new_one(server: ServerSide) -> None:
    database = server.database
    with pytest.raises(KeyboardInterrupt), database.write() as session:
        put(session, "a")
        raise KeyboardInterrupt
    assert names(database) == set()
    with database.write() as session:
        put(session, "b")
    assert names(database) == {"b"}


def test_nobody_else_sees_a_transaction_before_its_end(server: ServerSide) -> None:
    database, seen = server.database, []
    with database.write() as session:
        put(session, "a")
        seen.append(names(database))
        other = threading.Thread(target=lambda: seen.append(names(database)))
        other.start()
        other.join(READY_S)
    assert seen == [set(), set()] and names(database) == {"a"}


def test_a_transaction_within_a_transaction_is_a_mistake(server: ServerSide) -> None:
    with server.database.write(), pytest.raises(RuntimeError, match="pass the session"), server.database.write():
        pass
    with server.database.write() as session:
        put(session, "a")
    assert names(server.database) == {"a"}


def test_a_writer_that_holds_on_does_not_stop_the_others_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_S", 0.2)
    database = Database(f"sqlite:///{tmp_path}/x.db")
    database.migrate()
    problems: list[Exception] = []

    def write() -> None:
        try:
            with database.write() as session:
                put(session, "b")
        except SQLAlchemyError as problem:
            problems.append(problem)

    with database.write():
        other = threading.Thread(target=write)
        other.start()
        other.join(READY_S)
    assert [str(problem) for problem in problems] == ["other requests have been writing for 0.2 s"]
    with database.write() as session:
        put(session, "b")
    assert names(database) == {"b"}
    database.close()


def test_a_password_with_a_bare_at_sign_is_in_no_error() -> None:
    with pytest.raises(RegistryError, match="more than one '@'") as caught:
        Database("postgresql+psycopg://license:ab@cd@db.example/registry")
    assert "cd" not in str(caught.value).replace("code", "")


def test_an_empty_file_that_was_there_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.touch(mode=0o666)
    path.chmod(0o666)
    database = Database(sqlite_url(path))
    database.make_file()
    assert path.stat().st_mode & 0o777 == 0o600
    database.close()


def test_a_lock_that_nobody_lets_go_ends_the_wait(server: ServerSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_S", 1)
    other = Database(server.place.url)
    with server.database.write() as session, pytest.raises(SQLAlchemyError):
        session.get(Counter, "serial", with_for_update=True)
        with other.write() as second:
            second.get(Counter, "serial", with_for_update=True)
    other.close()
