"""The server watches its clock: in one process, across restarts and boots, beside other processes; on both databases."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import select

from server.base.machineclock import Reading
from server.base.ownclock import GAP_S, SETTLE_S, Finding
from server.registry.clockwatch import LOOK_AGAIN_S, OPERATOR, WORD_S, ClockNotTrusted, ClockWatch, _is_this_machine
from server.registry.database import Database, sqlite_url
from server.registry.models.core import Heartbeat
from tests.support.postgres import Postgres

NOW, DAY = 1_800_000_000, 86_400


@dataclass
class Machine:
    """A machine whose clocks the test sets."""

    wall: float = NOW
    boot_s: float = 5000.0
    boot_id: str = "boot-1"
    synchronized: bool = False

    def clocks(self) -> Reading:
        return Reading(self.wall, self.boot_s, self.boot_id)

    def runs(self, seconds: float) -> None:
        self.wall += seconds
        self.boot_s += seconds

    def is_off(self, seconds: float) -> None:
        self.wall += seconds
        self.boot_s, self.boot_id, self.synchronized = 20.0, self.boot_id + "x", False

    def watch(self, database: Database) -> ClockWatch:
        """Another process."""
        return ClockWatch(database, self.clocks, lambda: self.synchronized)


@pytest.fixture
def database(url: str | None, tmp_path: Path) -> Iterator[Database]:
    made = Database(url or sqlite_url(tmp_path / "x.db"))
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def machine() -> Machine:
    return Machine()


def accept(machine: Machine, database: Database) -> list[int]:
    with database.write() as session:
        return machine.watch(database).accept(session)


def test_a_clock_that_goes_on_is_trusted(machine: Machine, database: Database) -> None:
    watch = machine.watch(database)
    assert not watch.surely_trusted()
    for _ in range(50):
        watch.check()
        assert watch.surely_trusted()
        watch.beat()
        machine.runs(60)
    with database.read() as session:
        assert [row.at for row in session.scalars(select(Heartbeat))] == [NOW + 49 * 60]


@pytest.mark.parametrize("step", [-3600, 301, 8 * DAY, 400 * DAY])
def test_a_step_stops_signing_until_it_is_undone(machine: Machine, database: Database, step: int) -> None:
    watch = machine.watch(database)
    watch.check()
    machine.runs(10)
    machine.wall += step
    assert not watch.surely_trusted()
    with pytest.raises(ClockNotTrusted, match=r"has jumped by .*license-server clock accept"):
        watch.check()
    watch.beat()  # leaves no heartbeat
    with database.read() as session:
        assert session.scalars(select(Heartbeat)).all() == []
    machine.runs(600)
    with pytest.raises(ClockNotTrusted):
        watch.check()
    machine.wall -= step
    machine.runs(LOOK_AGAIN_S)
    watch.check()


def test_a_step_and_a_restart_in_the_same_boot(machine: Machine, database: Database) -> None:
    machine.synchronized = True
    machine.watch(database).beat()
    machine.runs(120)
    machine.wall += 400 * DAY
    with pytest.raises(ClockNotTrusted, match="has jumped by 400 days"):
        machine.watch(database).check()


def test_a_step_is_believed_after_forty_minutes_of_synchronization(machine: Machine, database: Database) -> None:
    machine.synchronized = True
    watch = machine.watch(database)
    watch.beat()
    machine.runs(7200)  # paused: CLOCK_BOOTTIME stood still
    machine.boot_s -= 7200
    trusted_after = None
    for second in range(0, SETTLE_S + 60, 10):
        machine.runs(10)
        if watch.problem() is None:
            trusted_after = second
            break
    assert trusted_after is not None and trusted_after >= SETTLE_S - 10
    # A break begins the wait again.
    machine.wall += 7200
    assert watch.problem() is not None
    machine.runs(SETTLE_S / 2)
    machine.synchronized = False
    assert watch.problem() is not None
    machine.synchronized = True
    machine.runs(SETTLE_S - 10)
    assert watch.problem() is not None


def test_a_time_daemon_that_comes_after_the_server_costs_nothing(machine: Machine, database: Database) -> None:
    machine.watch(database).beat()
    machine.is_off(DAY)
    machine.wall -= 3 * 3600  # the hardware's clock is in local time
    watch = machine.watch(database)
    watch.check()
    machine.runs(30)
    machine.wall += 3 * 3600
    machine.synchronized = True
    watch.check()


@pytest.mark.parametrize("off", [60, DAY, GAP_S])
def test_a_short_downtime_asks_nobody(machine: Machine, database: Database, off: int) -> None:
    machine.watch(database).beat()
    machine.is_off(off)
    machine.watch(database).check()


@pytest.mark.parametrize("off", [30 * DAY, 400 * DAY])
def test_a_long_downtime_needs_a_word_for_the_clock(machine: Machine, database: Database, off: int) -> None:
    machine.watch(database).beat()
    machine.is_off(off)
    running = machine.watch(database)
    with pytest.raises(ClockNotTrusted, match=f"heartbeat was {off // DAY} days ago"):
        running.check()
    synchronized = replace(machine, synchronized=True)
    synchronized.watch(database).check()
    assert accept(machine, database) == []
    machine.runs(LOOK_AGAIN_S)
    running.check()
    machine.is_off(DAY)
    machine.watch(database).check()


def test_an_operators_word_undoes_a_future_that_was_trusted(machine: Machine, database: Database) -> None:
    machine.wall += 20 * DAY
    machine.watch(database).beat()
    machine.is_off(-20 * DAY)
    watch = machine.watch(database)
    with pytest.raises(ClockNotTrusted, match="20 days before the last heartbeat"):
        watch.check()
    assert accept(machine, database) == [NOW + 20 * DAY]
    machine.runs(LOOK_AGAIN_S)
    watch.check()
    with database.read() as session:
        assert [row.process for row in session.scalars(select(Heartbeat))] == [OPERATOR]


def test_a_word_ends_a_step_in_a_running_process(machine: Machine, database: Database) -> None:
    watch = machine.watch(database)
    watch.beat()
    machine.wall += 3600
    assert watch.problem() is not None
    accept(machine, database)
    machine.runs(LOOK_AGAIN_S)
    assert watch.problem() is None


def test_a_word_counts_on_other_machines_for_ten_minutes(machine: Machine, database: Database) -> None:
    machine.watch(database).beat()
    machine.is_off(30 * DAY)
    other = Machine(machine.wall, 77.0, "another machine")
    watch = other.watch(database)
    # The other one has no heartbeat of its boot, and the last of all is long ago.
    assert watch.problem() is not None
    accept(machine, database)
    other.runs(WORD_S - 10)
    assert watch.problem() is None


def test_without_a_boot_id_no_boot_is_the_same(machine: Machine, database: Database) -> None:
    machine.boot_id = ""
    machine.watch(database).beat()
    machine.runs(60)
    machine.wall += DAY
    assert machine.watch(database).status().finding is Finding.CONTINUES


def test_what_an_operator_is_shown(machine: Machine, database: Database) -> None:
    watch = machine.watch(database)
    assert (watch.status().finding, watch.status().last) == (Finding.FIRST, None)
    watch.beat()
    machine.runs(30)
    status = machine.watch(database).status()
    assert (status.finding, status.last, status.synchronized) == (Finding.NO_STEP, NOW, False)


def test_old_heartbeats_go(machine: Machine, database: Database) -> None:
    with database.write() as session:
        session.add(Heartbeat(process="gone", at=NOW - 91 * DAY, boot_id="a", boot_ms=1, synchronized=False))
        session.add(Heartbeat(process="recent", at=NOW - 3 * DAY, boot_id="b", boot_ms=1, synchronized=False))
    machine.watch(database).beat()
    with database.read() as session:
        assert "gone" not in {row.process for row in session.scalars(select(Heartbeat))}


@pytest.mark.system
@pytest.mark.parametrize(
    ("host", "local"),
    [(None, True), ("", True), ("/run/postgresql", True), ("localhost", True), ("127.0.0.1", True), ("::1", True),
     ("192.0.2.7", False), ("no-such-host.invalid", True)],
)  # fmt: skip
def test_the_database_is_a_witness_only_on_another_machine(host: str | None, local: bool) -> None:
    assert _is_this_machine(host) is local


@pytest.fixture
def remote(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database of another machine, as far as the server knows."""
    monkeypatch.setattr("server.registry.clockwatch._is_this_machine", lambda _host: False)
    with postgres.database() as url:
        made = Database(url)
        made.migrate()
        yield made
        made.close()


def test_the_databases_clock_is_read(remote: Database, machine: Machine) -> None:
    database = remote
    machine.watch(database).beat()
    machine.is_off(30 * DAY)
    assert machine.watch(database).status().finding is Finding.DATABASE_CONTRADICTS
    machine.wall = time.time()
    with database.write() as session:
        session.merge(Heartbeat(process="x", at=int(machine.wall) - 30 * DAY, boot_id="c", boot_ms=1, synchronized=False))
        for row in session.scalars(select(Heartbeat).where(Heartbeat.process != "x")):
            session.delete(row)
    assert machine.watch(database).status().finding is Finding.DATABASE
