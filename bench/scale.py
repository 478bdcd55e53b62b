"""A registry of a million devices on PostgreSQL: what a rollout does there, its plans, and check-ins of agents beside it."""

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import event, text

from server import wiring
from server.fleet.rollouts import lifecycle, queue
from server.fleet.rollouts.policy import policy_of
from server.fleet.rollouts.rows import Plan
from server.fleet.rollouts.states import DeviceEvent

from .largeregistry import large_registry
from .load import percentile
from .rollouts import PATH, analyze, fill
from .server_load import Load, load_of, make_agents

GROUP = 50_000
LARGE = ("device", "device_version", "rollout_device", "agent", "certificate")


@dataclass(frozen=True, slots=True)
class Scale:
    """What was measured, times in seconds.

    Attributes:
        filled: to put all devices into groups.
        started: to start the group.
        group: its devices.
        asked: "what is open for me", the middle one and the 99th of a hundred.
        scanned: statements of a contact whose plan reads a whole table.
        plans: how many statements were planned.
        idle: check-ins with nothing beside them.
        beside: check-ins while devices of the rollout get orders and report.
        orders: orders and reports a second, meanwhile.
    """

    filled: float
    started: float
    group: int
    asked: tuple[float, float]
    scanned: list[str]
    plans: int
    idle: Load
    beside: Load
    orders: float


def measure_scale(directory: Path, count: int) -> Scale:
    """Measures a registry of so many devices.

    Args:
        directory: for the server's files; it must not exist yet.
        count: devices.
    """
    with large_registry(directory) as registry:
        return _measure(registry.server, registry.serve, directory, count)


def _measure(server: wiring.Server, command: list[str], directory: Path, count: int) -> Scale:
    now, size = int(time.time()), min(GROUP, count // 4)
    fill(server, count, now)
    policy = policy_of({"groups": [str(size), "rest"], "notice": 0, "success_percent": 100, "failure_percent": 100})
    began = time.perf_counter()
    with server.database.write() as session:
        lifecycle.create(session, Plan("r1", "all", PATH, None, policy), "bench", now)
    filled = time.perf_counter() - began
    analyze(server)
    began = time.perf_counter()
    with server.database.write() as session:
        lifecycle.start(session, "r1", now)
    started = time.perf_counter() - began
    with server.database.read() as session:
        query = "SELECT device_id FROM rollout_device WHERE rollout_id = 'r1' AND group_number = 1 LIMIT 20000"
        mine = [str(each) for each in session.scalars(text(query))]
    asked = _asked(server, mine)
    statements = _statements(server, mine[-1], now)
    agents = [make_agents(server, 50, 40, directory / name) for name in _made(directory, "idle", "beside")]
    idle = load_of(command, directory, agents[0])
    stop, done = threading.Event(), [0]
    worker = threading.Thread(target=_orders, args=(server, mine, now, stop, done))
    began = time.perf_counter()
    worker.start()
    try:
        beside = load_of(command, directory, agents[1])
    finally:
        stop.set()
        worker.join()
    orders = done[0] / (time.perf_counter() - began)
    scanned = _scanned(server, statements)
    return Scale(filled, started, size, asked, scanned, len(statements), idle, beside, orders)


def _made(directory: Path, *names: str) -> list[str]:
    for name in names:
        (directory / name).mkdir()
    return list(names)


def _asked(server: wiring.Server, mine: list[str]) -> tuple[float, float]:
    times = []
    with server.database.read() as session:
        for device_id in mine[:600]:
            began = time.perf_counter()
            found = queue.places(session, device_id)
            times.append(time.perf_counter() - began)
            assert len(found) == 1 and found[0].started
    return percentile(times[100:], 0.5), percentile(times[100:], 0.99)


def _act(server: wiring.Server, device_id: str, now: int) -> None:
    """A device is given its order, begins, and proves the update."""
    with server.database.write() as session:
        row = queue.open_for(session, device_id, now)
        assert row is not None
        queue.report(session, row.rollout_id, device_id, DeviceEvent.BEGIN, "", now)
    with server.database.write() as session:
        queue.report(session, "r1", device_id, DeviceEvent.PROVE, "", now)


def _orders(server: wiring.Server, mine: list[str], now: int, stop: threading.Event, done: list[int]) -> None:
    for device_id in mine[600:]:
        if stop.is_set():
            return
        _act(server, device_id, now)
        done[0] += 1


def _statements(server: wiring.Server, device_id: str, now: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        found[statement] = parameters

    event.listen(server.database.engine, "before_cursor_execute", note)
    try:
        _act(server, device_id, now)
    finally:
        event.remove(server.database.engine, "before_cursor_execute", note)
    return found


def _scanned(server: wiring.Server, statements: dict[str, Any]) -> list[str]:
    found = []
    with server.database.engine.connect() as connection:
        for statement, parameters in statements.items():
            if not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", statement):
                continue
            given = parameters[0] if isinstance(parameters, list) else parameters
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", given))
            if any(table in LARGE for table in re.findall(r"Seq Scan on (\w+)", plan)):
                found.append(statement)
        connection.rollback()
    return found
