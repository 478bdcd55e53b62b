"""A process that does nothing but connect and close keeps no till from its verdict, and shows in log and metrics."""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from license_agent_client import LicenseClient

from ipc.bounds import BACKLOG, DEFAULT_RATE_PER_S, UNAUTHORIZED_CONNECTS_PER_S
from tests.support.daemon import Bench, furnished
from tests.support.waiting import READY_S, wait_until

STRANGER = 64993
FLOOD = """
import os, socket, sys
if int(sys.argv[2]): os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
print("begun", flush=True)
while os.getppid() == int(sys.argv[3]):
    for _ in range(200):
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(sys.argv[1])
        except OSError:
            pass
"""


@pytest.fixture
def bench() -> Iterator[Bench]:
    with furnished() as made:
        yield made


@contextlib.contextmanager
def flooding(bench: Bench, uid: int) -> Iterator[None]:
    command = [sys.executable, "-c", FLOOD, str(bench.run_dir / "pos.sock"), str(uid), str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        yield
    finally:
        process.kill()
        process.communicate()


def validations(bench: Bench, token: str, times: int) -> list[float]:
    """Seconds of validations that each have a connection of their own."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        with LicenseClient(bench.run_dir / "pos.sock", deadline=READY_S, agent_uid=bench.uid) as client:
            assert client.validate(token).valid
        found.append(time.perf_counter() - began)
        time.sleep(0.02)
    return found


def metric(bench: Bench, name: str) -> float:
    text = bench.tool("license-agent-cli", "metrics")
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"license_agent_{name} "))


@pytest.mark.parametrize(
    ("uid", "counter", "outcome"),
    [
        pytest.param(0, "refused_requests_total", "rate_limited", id="another process of the till's user"),
        pytest.param(STRANGER, "unauthorized_total", "unauthorized", id="a stranger", marks=pytest.mark.root),
    ],
)
def test_a_flood_of_connections(bench: Bench, uid: int, counter: str, outcome: str) -> None:
    with bench.running():
        bench.give_secret()
        token = bench.issue()
        calm = statistics.median(validations(bench, token, 30))
        with flooding(bench, uid):
            wait_until(lambda: metric(bench, counter) > 2 * DEFAULT_RATE_PER_S, lambda: "nothing was counted")
            busy = statistics.median(validations(bench, token, 60))
        # Before, a till waited behind 4096 others: 200 to 2000 times as long as without them.
        assert busy < 100 * calm
    records = [record for record in bench.records() if record["outcome"] == outcome and record.get("socket") == "pos"]
    assert sum(record.get("count", 1) for record in records) > 2 * DEFAULT_RATE_PER_S
    assert sum("count" not in record for record in records) <= UNAUTHORIZED_CONNECTS_PER_S


def test_no_more_wait_than_can_be_served_soon(bench: Bench) -> None:
    with bench.running() as running:
        os.kill(running.process.pid, 19)  # it accepts nothing
        waiting = []
        try:
            with contextlib.suppress(BlockingIOError):
                while len(waiting) < 3 * BACKLOG:
                    sock = socket.socket(socket.AF_UNIX)
                    waiting.append(sock)
                    sock.setblocking(False)
                    sock.connect(str(bench.run_dir / "pos.sock"))
            assert BACKLOG <= len(waiting) <= BACKLOG + 2
        finally:
            os.kill(running.process.pid, 18)
            for sock in waiting:
                sock.close()
