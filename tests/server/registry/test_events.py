"""The feed of events: a reader that continues behind the last number misses none, on both databases."""

from contextlib import closing
from pathlib import Path

import pytest

from server.registry import audit, events
from server.registry.upkeep.housekeeping import Housekeeping
from server.registry.upkeep.retention import DAY_S, Retention
from tests.server.atonce import at_once
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide, open_server


def feed(server: ServerSide, after: int = 0, subject: str | None = None) -> list[events.EventRow]:
    with server.database.read() as session:
        return events.listed(session, after, 10_000, subject)


def test_events_come_in_order_with_their_ids(server: ServerSide) -> None:
    agent = Device(1).come(server).agent_id
    server.agents.set_status(agent, "revoked", NOW + 1)
    server.agents.set_status(agent, "revoked", NOW + 2)
    found = feed(server)
    assert [(row.kind, row.subject, row.at) for row in found] == [
        ("agent.enrolled", agent, NOW),
        ("agent.revoked", agent, NOW + 1),
    ], "what changes nothing is no event"
    assert found[1].fields == {"agent": agent} and found[0].seq < found[1].seq
    assert feed(server, found[0].seq) == found[1:] == feed(server, 0, agent)[1:]
    assert feed(server, 0, "another") == []


def test_an_event_of_what_did_not_happen_is_not_there(server: ServerSide) -> None:
    with server.database.write() as session:
        events.emit(session, "thing.begun", NOW, thing=1)
        outer = session.begin_nested()
        with session.begin_nested():
            events.emit(session, "thing.lost", NOW, thing=1)
        outer.rollback()
        with session.begin_nested():
            events.emit(session, "thing.kept", NOW, thing=1)
        events.emit(session, "thing.done", NOW, thing=1)
    with pytest.raises(ZeroDivisionError), server.database.write() as session:
        events.emit(session, "thing.lost", NOW, thing=2)
        raise ZeroDivisionError
    assert [row.kind for row in feed(server)] == ["thing.begun", "thing.kept", "thing.done"]


def test_an_event_needs_its_thing_and_a_writing_transaction(server: ServerSide) -> None:
    with server.database.write() as session, pytest.raises(ValueError, match="needs the id of its license"):
        events.emit(session, "license.issued", NOW, agent="x")
    with server.database.read() as session, pytest.raises(RuntimeError):
        events.emit(session, "license.issued", NOW, license="x")


def test_numbers_stay_ahead_of_a_restored_backup(server: ServerSide) -> None:
    """A backup lacks the newest events; a reader that has seen them must not take new ones for known."""
    for at in (NOW, NOW + 10):
        with server.database.write() as session:
            events.emit(session, "thing.seen", at, thing=1)
    known = feed(server)[-1].seq
    with server.database.write() as session:
        session.connection().exec_driver_sql("DELETE FROM event")
        session.connection().exec_driver_sql("UPDATE counter SET value = 0 WHERE name = 'events'")
    with server.database.write() as session:
        events.emit(session, "thing.seen", NOW + 20, thing=1)
    assert [row.at for row in feed(server, known)] == [NOW + 20]


def test_two_processes_write_while_one_reads_and_nothing_is_missed(directory: Path) -> None:
    """Each transaction takes the audit's counter too, before or after its events: nobody waits for ever."""
    each = 25

    def write(server: ServerSide, name: str) -> list[int]:
        for number in range(each):
            with server.database.write() as session:
                if number % 2:
                    audit.record(session, "admin", "probe", "ok", NOW)
                events.emit(session, "thing.seen", NOW, thing=f"{name}-{number}")
                events.emit(session, "thing.seen", NOW, thing=f"{name}-{number}+")
                audit.record(session, "admin", "probe", "ok", NOW)
        return []

    def read(server: ServerSide) -> list[int]:
        seen: list[int] = []
        while len(seen) < 4 * each:
            seen += [row.seq for row in feed(server, seen[-1] if seen else 0)]
        return seen

    with closing(open_server(directory)) as one, closing(open_server(directory)) as two:
        found = at_once([lambda: write(one, "a"), lambda: write(two, "b"), lambda: read(two)])
        assert found[2] == [row.seq for row in feed(one)]
        assert one.audit.verify(one.server.cipher.audit_key())[1] is None


def test_retention_removes_old_events(server: ServerSide) -> None:
    for at in (NOW, NOW + DAY_S):
        with server.database.write() as session:
            events.emit(session, "thing.seen", at, thing=at)
    due = NOW + Retention().events * DAY_S
    house = Housekeeping(server.database, server.cipher.audit_key())
    assert "event" not in house.run(due - 1, confirmed=True).rows
    assert house.run(due, confirmed=True).rows["event"] == 1
    assert [row.at for row in feed(server)] == [NOW + DAY_S]
