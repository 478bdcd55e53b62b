"""Rollouts under several processes and many devices: counters, decisions, interruptions, and the indexes that serve them."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from server import wiring
from server.fleet.devices.registry import note_versions
from server.fleet.rollouts import lifecycle, queue, views
from server.fleet.rollouts.overdue import Overdue
from server.fleet.rollouts.policy import policy_of
from server.fleet.rollouts.rows import Plan
from server.fleet.rollouts.states import DeviceEvent
from server.registry.models.fleets import Device
from tests.server.atonce import at_once
from tests.server.devices import NOW
from tests.server.fleet.rollouts.machines import FLEET, OLD, PACKAGE, World, add_agents
from tests.support.postgres import Postgres
from tests.support.serverside import ServerSide, open_server


def halves(world: World, names: list[str], act: Callable[[World, str], None]) -> None:
    """Does something for each name: every second one by another process, which has connections of its own."""
    other = open_server(world.server.place.directory)
    try:
        twin = World.beside(world, other)

        def run(side: World, mine: list[str]) -> None:
            for name in mine:
                for attempt in range(5):
                    try:
                        act(side, name)
                        break
                    except OperationalError:  # a deadlock that PostgreSQL has ended, or SQLite's lock
                        assert attempt < 4
                        deadlocks.append(name)

        deadlocks: list[str] = []
        at_once([lambda: run(world, names[::2]), lambda: run(twin, names[1::2])])
        assert deadlocks == [], "locks are taken in one order"
    finally:
        other.close()


def test_two_processes_count_every_device_once_and_start_each_group_once(server: ServerSide) -> None:
    world = World(server, 24)
    world.start(groups=["6", "6", "rest"], success_percent=100, failure_percent=100)
    for _ in range(6):
        halves(world, sorted(world.machines), World.visit)
        world.require_counted()
    assert world.rollout().state == "finished" and world.states() == ["succeeded"] * 3
    assert [group.proved for group in world.groups()] == [6, 6, 12]
    assert world.kinds().count("rollout.finished") == 1


def test_two_processes_stop_once_and_order_nothing_afterwards(server: ServerSide) -> None:
    world = World(server, 16)
    for machine in world.machines.values():
        machine.bad = True
    world.start(groups=["8", "rest"], failure_percent=50)
    for _ in range(3):
        halves(world, sorted(world.machines), World.visit)
    world.require_counted()
    assert world.rollout().state == "stopped" and world.kinds().count("rollout.stopped") == 1
    assert all(machine.had == [] for machine in world.of_group(2))


def test_a_transaction_that_is_cut_off_anywhere_leaves_everything_as_it_was(server: ServerSide) -> None:
    world = World(server, 4)
    world.start(groups=["1", "rest"], success_percent=100)
    first = world.of_group(1)[0]
    world.contact(first)
    first.work()
    said, known, runs = dict(first.outcomes), first.known, first.runs

    class Killed(Exception):
        pass

    statements = 0
    for cut in range(1, 200):
        first.outcomes, first.known, first.runs = dict(said), known, runs
        left = cut

        def count(*_arguments: Any) -> None:
            nonlocal left, statements
            statements += 1
            left -= 1
            if left == 0:
                raise Killed

        before = [(row.state, row.detail) for row in world.rows().values()], world.states(), world.rollout().state
        event.listen(server.database.engine, "before_cursor_execute", count)
        try:
            world.contact(first)
        except Killed:
            after = [(row.state, row.detail) for row in world.rows().values()], world.states(), world.rollout().state
            assert after == before
            continue
        finally:
            event.remove(server.database.engine, "before_cursor_execute", count)
        break
    else:
        raise AssertionError("the contact never came to its end")
    assert cut > 15 and world.states() == ["succeeded", "running"]
    world.require_counted()


def test_two_thousand_devices(server: ServerSide) -> None:
    world = World(server, 0)
    names = [f"d-{number:04}" for number in range(2000)]
    row = {"kind": "ddi", "name": "", "created_at": NOW, "updated_at": NOW, "revision": 1, "hardware": "till-mk1"}
    policy = policy_of({"notice": 0, "groups": ["5%", "20%", "rest"], "success_percent": 80, "failure_percent": 10})
    with server.database.write() as session:
        session.add_all(Device(id=name, **row) for name in names)
        session.flush()
        for name in names:
            note_versions(session, name, {"pos": OLD}, NOW)
        session.get_one(world.fleet, FLEET).selection = "kind=ddi"
        lifecycle.create(session, Plan("r1", FLEET, PACKAGE, None, policy), "olga", NOW)
        lifecycle.start(session, "r1", NOW)

    def ask(mine: list[str]) -> None:
        with server.database.write() as session:
            for name in mine:
                found = queue.open_for(session, name, NOW)
                if found is not None:
                    failed = found.group_number == 2
                    said = DeviceEvent.FAIL if failed else DeviceEvent.PROVE
                    queue.report(session, found.rollout_id, name, said, "broken" if failed else "", NOW)

    for begin in range(0, len(names), 100):
        ask(names[begin : begin + 100])
    first, second, last = world.groups()
    assert first.proved >= 80 and first.state == "succeeded"
    assert (second.total, second.failed, second.state) == (400, 40, "failed"), "the fortieth failure is the limit"
    assert (last.waiting, last.state) == (1500, "waiting") and world.rollout().state == "stopped"
    ask(names[::5])
    assert world.groups()[1].failed == 40 and world.groups()[2].waiting == 1500
    world.require_counted()


# Indexes

LARGE = ("rollout_device", "device", "device_version", "agent", "update_directive", "device_tag", "fleet_member")


@pytest.fixture
def on_postgres(tmp_path: Path, postgres: Postgres) -> Iterator[ServerSide]:
    with postgres.database() as url:
        plan = wiring.Plan("https://license.example", ("localhost",), tmp_path / "root.key", None)
        wiring.create_server(tmp_path / "server", plan, NOW, url)
        made = open_server(tmp_path / "server")
        yield made
        made.close()


def test_no_contact_and_no_job_reads_a_whole_table(on_postgres: ServerSide) -> None:
    world = World(on_postgres, 8)
    found: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        found[statement] = parameters[0] if many else parameters

    event.listen(on_postgres.database.engine, "before_cursor_execute", note)
    world.start(groups=["2", "rest"], failure_percent=100, success_percent=1, freeze=["2020-01-01"])
    world.round()
    world.write(lambda session: add_agents(session, ["pos-90000"]))
    world.machines["pos-90000"] = type(world.machines["pos-00001"])("pos-90000")
    world.round()
    world.write(lambda session: lifecycle.pause(session, "r1", world.now))
    world.write(lambda session: lifecycle.resume(session, "r1", world.now))
    found_before = set(found)
    world.write(lambda session: (views.devices(session, "r1", "", 9, "failed"), views.devices(session, "r1", "", 9)))
    world.write(lambda session: (views.listed(session, "", 9), views.reasons(session, "r1"), views.figures(session)))
    for hour in range(3):
        Overdue(on_postgres.database).run(world.now + hour * 3600)
    world.write(lambda session: lifecycle.stop(session, "r1", "", world.now))
    world.round()
    policy = policy_of({"groups": ["rest"], "notice": 0})
    world.write(lambda session: lifecycle.roll_back(session, "r1", "back", policy, "olga", world.now))
    world.round()
    event.remove(on_postgres.database.engine, "before_cursor_execute", note)
    assert len(found) > len(found_before) > 30
    scans = []
    with on_postgres.database.engine.connect() as connection:
        connection.exec_driver_sql("SET enable_seqscan = off")
        for statement, parameters in found.items():
            if re.match(r"\s*(SELECT|INSERT INTO rollout_device|UPDATE|DELETE)", statement):
                plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
                scans += [(table, statement) for table in re.findall(r"Seq Scan on (\w+)", plan) if table in LARGE]
                if "rollout_device.state IN ('waiting'" in statement and "JOIN rollout_group" in statement:
                    assert "rollout_device_open" in plan
        connection.rollback()
    assert scans == []
