"""What the two databases have in their own ways does the same on both."""

import threading
import time

import pytest
from sqlalchemy import select, text

from server.registry import dialect
from server.registry.database import Database
from server.registry.models.core import EnrollmentToken, Job, Secret
from tests.server.devices import NOW
from tests.support.serverside import ServerSide
from tests.support.waiting import READY_S

TOKENS, SECRETS = EnrollmentToken.__table__, Secret.__table__


def token(number: int | None, digest: str) -> EnrollmentToken:
    return EnrollmentToken(id=number, digest=digest * 64, state="open", created_at=NOW, expires_at=NOW + 9)


def test_numbers_go_on_behind_the_greatest(server: ServerSide) -> None:
    with server.database.write() as session:
        session.add(token(40, "a"))
        session.flush()
        dialect.go_on_behind(session, TOKENS, 40)
        session.flush()
        assert dialect.highest_given(session, TOKENS) == 40
        made = token(None, "b")
        session.add(made)
        session.flush()
        assert made.id == 41 == dialect.highest_given(session, TOKENS)
        assert dialect.highest_given(session, SECRETS) == 0  # it numbers nothing by itself
        dialect.go_on_behind(session, SECRETS, 7)


def test_a_locked_row_waits_for_the_transaction_that_has_it(server: ServerSide) -> None:
    with server.database.write() as session:
        session.add(Job(name="a", due_at=NOW, failures=0))
    query = text(dialect.locking("SELECT due_at FROM job WHERE name = 'a'", sqlite=server.database.is_sqlite))
    order: list[str] = []
    holds = threading.Event()

    def first() -> None:
        with server.database.write() as session:
            session.execute(query).one()
            holds.set()
            time.sleep(0.2)  # long enough that the other one would be done if it did not wait
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert holds.wait(READY_S)
    with server.database.write() as session:
        session.execute(query).one()
        order.append("second")
    thread.join(READY_S)
    assert order == ["first", "second"]


def test_what_another_transaction_has_locked_is_passed_over_or_waited_for(server: ServerSide) -> None:
    with server.database.write() as session:
        session.add_all(Job(name=name, due_at=NOW, failures=0) for name in "ab")
    free = dialect.passing_locked(select(Job).order_by(Job.name))
    if server.database.is_sqlite:
        with server.database.write() as session:
            assert [job.name for job in session.scalars(free)] == ["a", "b"]
        return
    other = Database(server.place.url)
    with server.database.write() as session, other.write() as second:
        session.get(Job, "a", with_for_update=True)
        assert [job.name for job in second.scalars(free)] == ["b"]
    other.close()


def test_only_a_database_on_another_machine_has_a_clock_of_its_own(server: ServerSide) -> None:
    with server.database.read() as session:
        found = dialect.own_clock(session)
    if server.database.is_sqlite:
        assert found is None
    else:
        assert found == pytest.approx(time.time(), abs=READY_S)
