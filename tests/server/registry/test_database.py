"""A unit is one transaction: its parts fail alone, and it holds as a whole or not at all."""

import threading
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

from server.registry import database as module
from server.registry.database import Database
from server.registry.models import Setting
from server.wiring import Server
from tests.support.waiting import READY_S


def names(database: Database) -> set[str]:
    with database.reading() as session:
        return {name for name in ("a", "b", "c") if session.get(Setting, name) is not None}


def put(database: Database, name: str) -> None:
    with database.transaction() as session:
        session.add(Setting(name=name, value="1"))


def test_a_part_that_fails_takes_back_its_own_changes_only(office: Server) -> None:
    database = office.database
    with database.unit():
        put(database, "a")
        with pytest.raises(ValueError, match="refused"), database.transaction() as session:
            session.add(Setting(name="b", value="1"))
            raise ValueError("refused")
        with pytest.raises(SQLAlchemyError):
            put(database, "a")
        put(database, "c")
        assert names(database) == {"a", "c"}
    assert names(database) == {"a", "c"}


def test_a_unit_that_fails_leaves_nothing_and_the_next_is_a_new_one(office: Server) -> None:
    database = office.database
    with pytest.raises(KeyboardInterrupt), database.unit():
        put(database, "a")
        raise KeyboardInterrupt
    assert names(database) == set()
    with database.unit():
        put(database, "b")
    assert names(database) == {"b"}


def test_nobody_else_sees_a_unit_before_its_end(office: Server) -> None:
    database, seen = office.database, []
    with database.unit():
        put(database, "a")
        other = threading.Thread(target=lambda: seen.append(names(database)))
        other.start()
        other.join(READY_S)
    assert seen == [set()] and names(database) == {"a"}


def test_a_unit_within_a_unit_is_a_mistake(office: Server) -> None:
    with office.database.unit(), pytest.raises(RuntimeError, match="unit"), office.database.unit():
        pass


def test_a_writer_that_holds_on_does_not_stop_the_others_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_S", 0.2)
    database = Database(f"sqlite:///{tmp_path}/x.db")
    database.migrate()
    problems: list[Exception] = []

    def write() -> None:
        try:
            put(database, "b")
        except SQLAlchemyError as problem:
            problems.append(problem)

    with database.transaction():
        other = threading.Thread(target=write)
        other.start()
        other.join(READY_S)
    assert [str(problem) for problem in problems] == ["other requests have been writing for 0.2 s"]
    put(database, "b")
    assert names(database) == {"b"}
    database.close()
