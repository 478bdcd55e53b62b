"""The supervisor of the workers, with real processes and a clock of the test: who is silent is replaced, and nobody else."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from socket import socket, socketpair

import pytest

from common.sd_notify import Notifier
from server import workers
from server.serving import Sockets
from server.workers import AWAY_S, SILENT_S, START_S, Inherited, Supervisor, interpreter
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

SAYS_WHAT_IT_IS_GIVEN = """
import os, sys
while word := os.read(0, 1):
    os.write(int(sys.argv[1]), word)
"""


@dataclass
class World:
    """A supervisor whose workers say what the test lets them say.

    Attributes:
        now: seconds of the supervisor's clock.
    """

    now: float = 0.0
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        sockets = [Sockets(socket(), None) for _ in range(2)]
        self.supervisor = Supervisor(
            sockets, self._start, Notifier(), lambda text, _fields: self.said.append(text), lambda: self.now
        )
        for number in range(2):
            self.supervisor._start(number)

    def _start(self, descriptors: list[int | None]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-I", "-c", SAYS_WHAT_IT_IS_GIVEN, str(descriptors[0])]
        made = subprocess.Popen(command, pass_fds=[each for each in descriptors if each is not None], stdin=subprocess.PIPE)
        self.started.append(made)
        return made

    def process(self, number: int) -> "subprocess.Popen[bytes]":
        return self.supervisor._workers[number].process

    def says(self, number: int, word: bytes) -> None:
        """Lets a worker say something, and waits until it has."""
        given = self.process(number).stdin
        assert given is not None
        given.write(word)
        given.flush()
        assert select.select([self.supervisor._workers[number].line], [], [], READY_S)[0]

    def look(self, after: float) -> bool:
        self.now += after
        return self.supervisor._look()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for each in made.started:
        each.kill()
        each.wait()
        assert each.stdin is not None
        each.stdin.close()
    for number in range(2):
        made.supervisor._workers[number].line.close()
        made.supervisor.sockets[number].api.close()


def both_serve(world: World) -> None:
    for number in range(2):
        world.says(number, b"R")
    assert world.look(0)
    assert "serving" in world.said


def test_a_halted_worker_is_killed_and_replaced_and_the_other_one_stays(world: World) -> None:
    both_serve(world)
    halted, other = world.process(0), world.process(1)
    os.kill(halted.pid, signal.SIGSTOP)
    for _ in range(int(SILENT_S)):
        world.says(1, b"A")
        assert world.look(1)
    assert halted.poll() is None, "it may be silent for so long"
    world.says(1, b"A")
    assert world.look(1)
    assert halted.wait(READY_S) == -signal.SIGKILL
    assert world.look(0)
    assert world.process(0) is not halted and world.process(1) is other
    assert world.said[-2:] == ["a worker gives no sign of life; it is killed", "a worker has ended"]
    world.says(0, b"R")
    assert world.look(1)
    assert all(each.ready for each in world.supervisor._workers.values())


def test_it_is_killed_once(world: World) -> None:
    both_serve(world)
    for _ in range(int(SILENT_S) + 1):
        world.says(1, b"A")
        world.look(1)
    world.supervisor._listen(0, world.supervisor._workers[0])
    assert world.said.count("a worker gives no sign of life; it is killed") == 1


def test_one_that_never_serves_is_killed_later(world: World) -> None:
    world.says(1, b"R")
    for _ in range(int(START_S)):
        world.says(1, b"A")
        assert world.look(1)
    assert world.process(0).poll() is None
    world.look(1)
    assert world.process(0).wait(READY_S) == -signal.SIGKILL


def test_when_the_supervisor_itself_was_halted_nobody_is_killed_for_the_time_before(world: World) -> None:
    both_serve(world)
    assert world.look(10 * SILENT_S)
    assert [world.process(number).poll() for number in range(2)] == [None, None]
    for _ in range(int(SILENT_S / AWAY_S) + 1):
        world.look(AWAY_S)
    assert [world.process(number).wait(READY_S) for number in range(2)] == [-signal.SIGKILL] * 2, "they are silent since"


def test_what_a_worker_says_never_makes_it_wait(world: World) -> None:
    """The supervisor is halted and reads nothing: the worker's event loop goes on."""
    line, supervisor = socketpair()
    with line, supervisor:
        worker = Inherited(world.supervisor.sockets[0], line)
        talking = threading.Thread(target=lambda: [worker.tell_alive() for _ in range(10_000)], daemon=True)
        talking.start()
        talking.join(READY_S)
        assert not talking.is_alive()
        assert supervisor.recv(1) == b"A"


@pytest.mark.parametrize("no_site", [False, True], ids=["as it is installed here", "from a package's own tree"])
def test_a_worker_finds_the_program_where_its_supervisor_has_it(no_site: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_ENTRY", "import server, sys; print(server.__file__, sys.flags.no_site, *sys.argv[1:])")
    command = [*interpreter(sys.executable, no_site=no_site), "serve"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.split()
    assert found == [os.path.join(os.path.dirname(workers.__file__), "__init__.py"), str(int(no_site)), "serve"]
