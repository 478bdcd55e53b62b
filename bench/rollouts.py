"""A rollout of a large fleet on PostgreSQL: to make it, to start a group, what a contact asks, reports that meet in a group.

The floor of each figure is the least that PostgreSQL does for it, by the driver alone: rows of constants in a table with the
same indexes, the one statement that finds a row by an index, or an update of one row with its commit, by as many threads.
"""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from server import wiring
from server.fleet.rollouts import lifecycle, queue
from server.fleet.rollouts.policy import policy_of
from server.fleet.rollouts.rows import Plan
from server.fleet.rollouts.states import DeviceEvent

from .largeregistry import large_registry

THREADS = 4
PATH = "pos/pos-1.1.0-b2"
ROWS = (
    """INSERT INTO device (id, kind, name, hardware, created_at, updated_at, revision)
       SELECT 'd-' || lpad(n::text, 7, '0'), 'ddi', '', 'till-mk1', :now, :now, 1 FROM generate_series(1, :count) n""",
    """INSERT INTO device_version (device_id, product, version, build_id, reported_at)
       SELECT 'd-' || lpad(n::text, 7, '0'), 'pos', '1.0.0', 'b1', :now FROM generate_series(1, :count) n""",
    """INSERT INTO fleet (id, name, tags, selection, rank, policy, created_at, updated_at, revision)
       VALUES ('all', '', '[]', 'kind=ddi', 1, '{}', :now, :now, 1)""",
    """INSERT INTO update_package
       (path, product, version, build_id, kind, hardware, sha256, length, role, published_at, updated_at)
       VALUES ('pos/pos-1.1.0-b2', 'pos', '1.1.0', 'b2', 'slots', '["till-mk1"]', '', 1, 'releases', :now, :now)""",
)
_COPY = """INSERT INTO floor (rollout_id, device_id, group_number, state, detail, updated_at)
    SELECT 'r1', id, 1, 'waiting', '', :now FROM device ORDER BY id"""
_FIND = """SELECT d.rollout_id, d.state, g.state, r.state FROM rollout_device d JOIN rollout r ON r.id = d.rollout_id
    JOIN rollout_group g ON g.rollout_id = d.rollout_id AND g.number = d.group_number
    WHERE d.device_id = %s AND d.state IN ('waiting', 'ordered', 'under-way', 'installed')"""


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure and its floor, each in seconds, or a number each second."""

    name: str
    ours: float
    floor: float
    unit: str


def measure_rollouts(directory: Path, count: int, seconds: float) -> list[Measured]:
    """Measures a rollout over so many devices.

    Args:
        directory: for the server's files; it must not exist yet.
        count: devices.
        seconds: how long each rate is taken.
    """
    with large_registry(directory) as registry:
        return _measure(registry.server, count, seconds)


def fill(server: wiring.Server, count: int, now: int) -> None:
    """Puts so many devices, a fleet of all of them, and a package into an empty registry."""
    with server.database.write() as session:
        session.execute(text("SET LOCAL synchronous_commit = off"))
        for statement in ROWS:
            values = {"now": now, "count": count}
            session.execute(text(statement), {name: value for name, value in values.items() if f":{name}" in statement})
    analyze(server)


def _measure(server: wiring.Server, count: int, seconds: float) -> list[Measured]:
    now = int(time.time())
    fill(server, count, now)
    size = min(50_000, count // 4)
    groups = [str(size), str(size), "rest"]
    policy = policy_of({"groups": groups, "notice": 0, "success_percent": 100, "failure_percent": 100})

    def create() -> None:
        with server.database.write() as session:
            lifecycle.create(session, Plan("r1", "all", PATH, None, policy), "bench", now)

    def copy() -> None:
        with server.database.write() as session:
            session.execute(text("CREATE TABLE floor (LIKE rollout_device INCLUDING ALL)"))
            session.execute(text(_COPY), {"now": now})

    def start() -> None:
        with server.database.write() as session:
            lifecycle.start(session, "r1", now)

    def touch() -> None:
        with server.database.write() as session:
            session.execute(text("UPDATE rollout_group SET started_at = started_at WHERE rollout_id = 'r1' AND number = 1"))

    found = [Measured(f"put {count:,} devices into groups", _timed(create), _timed(copy), "s")]
    analyze(server)
    found.append(Measured(f"start a group of {size:,}", _timed(start), _timed(touch), "s"))
    ids = [f"d-{number:07d}" for number in range(1, count, max(1, count // 5000))]
    with server.database.read() as session:
        ours = _rate(lambda number: queue.places(session, ids[number % len(ids)]), seconds)
    with server.database.driver(writing=False) as lent:
        floor = _rate(lambda number: lent.cursor().execute(_FIND, (ids[number % len(ids)],)).fetchall(), seconds)
        lent.rollback()
    found.append(Measured("what is open for a device", ours, floor, "/s"))
    with server.database.read() as session:
        mine = [
            str(each)
            for each in session.scalars(text(f"SELECT device_id FROM rollout_device WHERE group_number = 1 LIMIT {size}"))
        ]
    found.append(_contended(server, mine, seconds, now))
    return found


def _contended(server: wiring.Server, mine: list[str], seconds: float, now: int) -> Measured:
    """Devices of one group that are given their order and report, each in a transaction: all of them change the group's row."""

    def order_and_report(number: int) -> None:
        with server.database.write() as session:
            row = queue.open_for(session, mine[number], now)
            assert row is not None
            queue.report(session, row.rollout_id, mine[number], DeviceEvent.BEGIN, "", now)

    def update_row(_number: int) -> None:
        with server.database.driver(writing=True) as lent:
            lent.cursor().execute("UPDATE rollout_group SET seconds = seconds WHERE rollout_id = 'r1' AND number = 1")
            lent.commit()

    ours = _rate_of_threads(order_and_report, seconds, len(mine))
    floor = _rate_of_threads(update_row, seconds, sys.maxsize)
    return Measured(f"orders of one group, {THREADS} at once", ours, floor, "/s")


def _rate_of_threads(act: Callable[[int], object], seconds: float, most: int) -> float:
    turn, numbers, done = threading.Lock(), iter(range(most)), 0
    until = time.perf_counter() + seconds

    def work() -> None:
        nonlocal done
        while time.perf_counter() < until:
            with turn:
                number = next(numbers, None)
            if number is None:
                return
            act(number)
            with turn:
                done += 1

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        for each in [pool.submit(work) for _ in range(THREADS)]:
            each.result()
    return done / (time.perf_counter() - began)


def _rate(act: Callable[[int], object], seconds: float) -> float:
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        act(done)
        done += 1
    return done / (time.perf_counter() - began)


def _timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def analyze(server: wiring.Server) -> None:
    """Gives PostgreSQL its statistics."""
    with server.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
