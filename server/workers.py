"""Runs `license-server serve` in several processes: starts them on the same sockets, restarts them, stops them.

A worker that serves says each second that its event loop runs. One that hangs would keep the connections that it has accepted,
and the locks that it holds; it is killed, and another one starts.

The workers share nothing but the registry, as servers on different machines do, and the sockets. This process serves nothing
and keeps no key; it tells the service manager when all of them serve.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.sd_notify import Notifier

from .base.errors import RegistryError
from .serving import Sockets

WORKER_OPTION = "--worker"
_ENTRY = "from server.main import entry; entry()"
ABSENT = "-"
"""In the value of `--worker`: no such socket."""
STOP_S = 30
"""How long workers may take to end their requests."""
RESTARTS, RESTARTS_S = 5, 60.0
"""Workers that may end by themselves within that many seconds; beyond that all of them stop."""
ALIVE_S = 1.0
"""How often a worker says that it is alive."""
SILENT_S = 30.0
"""A worker that was silent for so long is killed: no work holds an event loop up for that long."""
START_S = 180.0
"""How long a worker may take until it serves: its start may wait for the database."""
AWAY_S = 5.0
"""If this process has not looked for so long, it was halted itself, and perhaps the workers with it."""
_LOOK_S = 0.5
_READY, _ALIVE = b"R", b"A"
_MOST_AT_ONCE = 4096
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


@dataclass
class _Worker:
    process: "subprocess.Popen[bytes]"
    line: socket.socket
    heard_at: float
    ready: bool = False
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a worker gets from the process that starts it.

    Attributes:
        sockets: bound already.
        line: a socket to that process: bytes say that this one serves, and is alive; its end, that the other one is gone.
    """

    sockets: Sockets
    line: socket.socket

    def tell_ready(self) -> None:
        """Says that this process serves, and takes SIGHUP from now on."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._tell(_READY)

    def tell_alive(self) -> None:
        """Says that this process's event loop runs. Never waits."""
        self._tell(_ALIVE)

    def _tell(self, word: bytes) -> None:
        # The other process is gone, and this one stops; or it is halted, and has enough to read when it goes on.
        with contextlib.suppress(OSError):
            self.line.send(word, socket.MSG_DONTWAIT)


def inherited(text: str) -> Inherited:
    """What the value of `--worker` names: the numbers of the descriptors, with commas between them.

    Raises:
        RegistryError: the value is not of that form, or they are not sockets.
    """
    try:
        line, api, ops, operators, ddi = (
            None if each == ABSENT else socket.socket(fileno=int(each)) for each in text.split(",")
        )
        if line is None or api is None:
            raise ValueError
    except (ValueError, OSError):
        raise RegistryError(f"{WORKER_OPTION} is for processes that 'license-server serve --workers' starts") from None
    for each in (line, api, ops, operators, ddi):
        if each is not None:
            each.set_inheritable(False)
    # What the supervisor waits for is blocked in what it starts. SIGHUP would end a process that does not serve yet.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS - {signal.SIGHUP})
    return Inherited(Sockets(api, ops, operators, ddi), line)


@dataclass
class Supervisor:
    """Keeps the workers running.

    Args:
        sockets: for each worker.
        start: starts a process with these descriptors, named in the order that `inherited` takes them in.
        notices: to the service manager.
        say: logs what happens.
        steady: seconds of a clock that never goes back.
    """

    sockets: Sequence[Sockets]
    start: Callable[[list[int | None]], "subprocess.Popen[bytes]"]
    notices: Notifier
    say: Callable[[str, dict[str, object]], None]
    steady: Callable[[], float] = time.monotonic
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _ended: list[float] = field(default_factory=list)
    _looked_at: float | None = None
    _told: bool = False

    def run(self) -> int:
        """Runs until SIGTERM or SIGINT; returns the exit status."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        status = 0
        try:
            for number in range(len(self.sockets)):
                self._start(number)
            while True:
                came = signal.sigtimedwait(_SIGNALS, _LOOK_S)
                if came is not None and came.si_signo in (signal.SIGTERM, signal.SIGINT):
                    break
                if came is not None and came.si_signo == signal.SIGHUP:
                    self._signal(signal.SIGHUP)
                if not self._look():
                    status = 1
                    break
        finally:
            self.notices.send("STOPPING=1")
            self._stop()
        return status

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        sockets = self.sockets[number]
        given = (theirs, sockets.api, sockets.ops, sockets.operators, sockets.ddi)
        descriptors = [None if each is None else each.fileno() for each in given]
        process = self.start(descriptors)
        theirs.close()
        ours.setblocking(False)
        self._workers[number] = _Worker(process, ours, self.steady())

    def _look(self) -> bool:
        """Starts what has ended again, kills what hangs; returns False if too many have ended."""
        self._excuse()
        for number, worker in list(self._workers.items()):
            status = worker.process.poll()
            if status is not None:
                worker.line.close()
                now = self.steady()
                self._ended = [*(then for then in self._ended if now - then < RESTARTS_S), now]
                self.say("a worker has ended", {"worker": number, "status": status})
                if len(self._ended) > RESTARTS:
                    self.say("too many workers have ended; all of them stop", {"within_s": RESTARTS_S})
                    return False
                self._start(number)
            else:
                self._listen(number, worker)
        if not self._told and all(worker.ready for worker in self._workers.values()):
            self._told = self.notices.send("READY=1")
            self.say("serving", {"workers": len(self._workers)})
        return True

    def _excuse(self) -> None:
        """If this process was halted, by a debugger or with its machine, no worker's silence counts until now."""
        now = self.steady()
        if self._looked_at is not None and now - self._looked_at > AWAY_S:
            for worker in self._workers.values():
                worker.heard_at = now
        self._looked_at = now

    def _listen(self, number: int, worker: _Worker) -> None:
        """Takes note of what a worker says; kills one that has been silent for too long."""
        said, now = b"", self.steady()
        with contextlib.suppress(BlockingIOError, ConnectionError):
            said = worker.line.recv(_MOST_AT_ONCE)
        if said:
            worker.heard_at, worker.ready = now, worker.ready or _READY in said
        silent = now - worker.heard_at
        if silent > (SILENT_S if worker.ready else START_S) and not worker.killed:
            worker.killed = True
            self.say("a worker gives no sign of life; it is killed", {"worker": number, "silent_s": int(silent)})
            worker.process.kill()

    def _signal(self, number: int) -> None:
        for worker in self._workers.values():
            if worker.process.poll() is None:
                worker.process.send_signal(number)

    def _stop(self) -> None:
        self._signal(signal.SIGTERM)
        ends = self.steady() + STOP_S
        for worker in self._workers.values():
            try:
                worker.process.wait(max(0.1, ends - self.steady()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.line.close()


def start_again(descriptors: list[int | None]) -> "subprocess.Popen[bytes]":
    """Starts this program with its own arguments, as a worker."""
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    arguments = [*sys.argv[1:], WORKER_OPTION, ",".join(ABSENT if each is None else str(each) for each in descriptors)]
    return subprocess.Popen(
        [*interpreter(sys.executable, no_site=bool(sys.flags.no_site)), *arguments],
        pass_fds=[each for each in descriptors if each is not None],
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def interpreter(executable: str, *, no_site: bool) -> list[str]:
    """The command that starts this program, without its arguments.

    It names the interpreter, since a console script may have been started by a name that is not a path.

    Args:
        executable: the interpreter.
        no_site: whether this process runs without site directories, as from a package's own tree: that tree is named then.
    """
    if not no_site:
        return [executable, "-I", "-c", _ENTRY]
    tree = os.fspath(Path(__file__).resolve().parents[1])
    return [executable, "-IS", "-c", f"import sys; sys.path.insert(0, {tree!r}); {_ENTRY}"]
