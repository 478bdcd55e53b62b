"""A daemon whose log nobody reads any more goes on validating, counts what it lost, tells of it, and stops without waiting."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from license_agent_client import LicenseClient

from tests.support.daemon import Bench, furnished
from tests.support.waiting import READY_S, wait_until

LINES = 1500


@pytest.fixture
def bench() -> Iterator[Bench]:
    with furnished() as made:
        yield made


class Agent:
    """A daemon with a pipe of ours as its standard error."""

    def __init__(self, bench: Bench, notices: socket.socket, command: list[str]) -> None:
        self.bench = bench
        self._notices = notices
        self.reading, writing = os.pipe()
        env = {**bench.env, "NOTIFY_SOCKET": str(bench.root / "notify")}
        self.process = subprocess.Popen([*command, *bench.program], env=env, stderr=writing, stdin=subprocess.DEVNULL)
        os.close(writing)

    def wait_ready(self) -> None:
        wait_until(lambda: b"READY=1" in self._notices.recv(4096).split(b"\n"), lambda: "it is not ready", pause_s=0)

    def make_it_log(self, lines: int) -> None:
        """Reloads of a configuration with problems make lines, two or more each."""
        self.bench.write_config(extra="".join(f"[nonsense-{'x' * 60}-{number}]\n" for number in range(lines)))
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: b"READY=1" in self._notices.recv(4096).split(b"\n"), lambda: "it has not reloaded", pause_s=0)
        self.bench.write_config()


@contextlib.contextmanager
def agent_of(bench: Bench, *command: str) -> Iterator[Agent]:
    path = bench.root / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(path))
        path.chmod(0o666)
        notices.settimeout(READY_S)
        agent = Agent(bench, notices, list(command))
        try:
            agent.wait_ready()
            yield agent
        finally:
            agent.process.kill()
            agent.process.wait()
            os.close(agent.reading)
            path.unlink()


def validates(bench: Bench, token: str) -> bool:
    with LicenseClient(bench.run_dir / "pos.sock", deadline=READY_S, agent_uid=bench.uid) as client:
        return client.validate(token).valid


def metric(bench: Bench, name: str) -> float:
    text = bench.tool("license-agent-cli", "metrics")
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"license_agent_{name} "))


def test_standard_error_that_nobody_reads_delays_no_verdict_and_no_stop(bench: Bench) -> None:
    with agent_of(bench) as agent:
        bench.give_secret()
        token = bench.issue()
        agent.make_it_log(LINES)
        assert validates(bench, token)
        dropped = metric(bench, "log_lines_dropped_total")
        assert dropped > 0
        text, ended = b"", threading.Event()

        def read() -> None:
            nonlocal text
            while part := os.read(agent.reading, 65_536):
                text += part
            ended.set()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        wanted = b"log lines were dropped: nobody took them in time"
        wait_until(lambda: wanted in text, lambda: f"the reader was not told: {text[-500:]!r}")
        assert f"<4>{int(dropped)} ".encode() + wanted in text
        assert text.count(b"unknown section [nonsense") + text.count(b"more") < LINES
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(READY_S) == 0
        assert ended.wait(READY_S)
        assert b"license-agent has stopped" in text


def test_a_stop_does_not_wait_for_a_reader_that_has_stopped(bench: Bench) -> None:
    with agent_of(bench) as agent:
        agent.make_it_log(LINES)
        began = time.monotonic()
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(READY_S) == 0
        assert time.monotonic() - began < READY_S


def test_a_reader_that_has_gone_stops_nothing(bench: Bench) -> None:
    with agent_of(bench) as agent:
        bench.give_secret()
        token = bench.issue()
        os.close(agent.reading)
        agent.reading = os.open(os.devnull, os.O_RDONLY)
        agent.make_it_log(3)
        assert validates(bench, token)
        assert metric(bench, "log_lines_dropped_total") > 0
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(READY_S) == 0


FREEZE = """
import os, socket, subprocess, sys
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
os.makedirs("/run/systemd/journal")
journald = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journald.bind("/run/systemd/journal/socket")
os.chmod("/run/systemd/journal/socket", 0o666)
filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
filler.setblocking(False)
try:
    while True:
        filler.sendto(b"MESSAGE=x\\n", "/run/systemd/journal/socket")
except BlockingIOError:
    pass
child = subprocess.Popen(sys.argv[1:])
sys.stdin.read()
child.terminate()
sys.exit(child.wait())
"""


@pytest.mark.root
def test_a_frozen_journald_delays_no_start_no_verdict_and_no_stop(bench: Bench) -> None:
    script = bench.root / "freeze.py"
    script.write_text(FREEZE)
    path = bench.root / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(path))
        path.chmod(0o666)
        notices.settimeout(READY_S)
        process = subprocess.Popen(
            ["unshare", "--mount", sys.executable, str(script), *bench.program],
            env={**bench.env, "NOTIFY_SOCKET": str(path)},
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: b"READY=1" in notices.recv(4096).split(b"\n"), lambda: "it is not ready", pause_s=0)
            bench.give_secret()
            assert validates(bench, bench.issue())
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(READY_S) == 0
        finally:
            process.kill()
            process.wait()
