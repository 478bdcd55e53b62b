"""Finds and runs the programs that run as long as a stand does: each as a process of its own, as on a real machine."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ipc.bounds import BACKLOG

from .reachable import HERE

READY_S = 300.0
"""Seconds after which a wait for a program ends with an error. It costs nothing while all is well, so it is far above what a
machine under load needs; a program that ends is noticed at once."""


STOP_S = 60.0
"""Seconds after which a program that was asked to end is made to."""


class StandError(Exception):
    """The stand cannot do what was asked; the text says why and what to do."""


def program(name: str, place: Path = HERE) -> str:
    """Path of one of our commands: in a place of theirs, else in the path."""
    beside = place / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise StandError(f"the command {name} is not installed beside license-stand")
    return found


def free_ports() -> int:
    """The first of two neighboring free ports on loopback.

    Below those that the kernel hands out by itself (ip_local_port_range), so that no outgoing connection takes one of
    them between this look and the program that is to listen there.
    """
    for _ in range(100):
        port = 2 * random.SystemRandom().randrange(5_000, 16_000)
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
    raise StandError("no two neighboring free ports on 127.0.0.1")


class Swtpm:
    """A simulated TPM 2.0, on two neighboring TCP ports of loopback.

    Args:
        state: its directory, absolute.
        uid: whom it runs as; None for the caller.
    """

    def __init__(self, state: Path, uid: int | None) -> None:
        swtpm = shutil.which("swtpm")
        if swtpm is None:
            raise StandError("swtpm is not installed: apt-get install swtpm, or use --backend software")
        port = free_ports()
        self.tcti = f"swtpm:host=127.0.0.1,port={port}"
        self._process = subprocess.Popen(
            [
                swtpm,
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={state}",
                "--server",
                f"type=tcp,port={port},bindaddr=127.0.0.1",
                "--ctrl",
                f"type=tcp,port={port + 1},bindaddr=127.0.0.1",
                "--flags",
                "not-need-init,startup-clear",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            start_new_session=True,
        )
        ends = time.monotonic() + READY_S
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                raise StandError("swtpm ended at once; is its directory writable?")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), READY_S):
                return
            time.sleep(0.02)
        raise StandError(f"swtpm did not open its port within {READY_S:g} s")

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends it."""
        end(self._process)


class Service:
    """A program of ours that runs as long as the stand does, and can be started again.

    Args:
        name: the command.
        log: takes what it writes.
        arguments: of the command.
        uid: whom it runs as; None for the caller.
        listen: path of a socket that it is passed, and that outlives it; only `passed_to` may use it.
        passed_to: UID; None for the caller.
        commands: where the command is, for that user.
        command: what is run, where that is not named as the program is.
    """

    def __init__(
        self,
        name: str,
        log: Path,
        arguments: list[str],
        uid: int | None = None,
        listen: Path | None = None,
        passed_to: int | None = None,
        commands: Path = HERE,
        command: str = "",
    ) -> None:
        self.name = name
        self._command = command or name
        self._log = log
        self._arguments = arguments
        self._uid = uid
        self._commands = commands
        self._socket = None if listen is None else _listen(listen, 0o600)
        if listen is not None and passed_to is not None:
            os.chown(listen, passed_to, passed_to)
        self._process: subprocess.Popen[bytes] | None = None
        self.wanted = False

    @property
    def pid(self) -> int:
        """Its process id; 0 if it does not run."""
        return 0 if self._process is None or not self.running else self._process.pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self, ready: Callable[[], bool]) -> None:
        """Starts it and returns when `ready` says so.

        Raises:
            StandError: it ended, or was not ready in time.
        """
        self.wanted = True
        numbers = [] if self._socket is None else [self._socket.fileno()]
        launch = [str(self._commands / "python"), "-m", "stand.launch", self.name, *map(str, numbers)] if numbers else []
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*launch, program(self._command, self._commands), *self._arguments],
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._uid,
                group=self._uid,
                extra_groups=None if self._uid is None else [],
                start_new_session=True,
                cwd="/",
            )
        ends = time.monotonic() + READY_S
        while time.monotonic() < ends:
            if ready():
                return
            if not self.running:
                break
            time.sleep(0.02)
        tail = "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-10:])
        raise StandError(f"{self.name} did not start; the end of {self._log}:\n{tail}")

    def stop(self) -> None:
        """Ends it."""
        self.wanted = False
        if self._process is not None:
            end(self._process)

    def close(self) -> None:
        """Ends it and closes its socket."""
        self.stop()
        if self._socket is not None:
            self._socket.close()


def answers(port: int) -> bool:
    """Whether something listens on that port of loopback."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), READY_S):
        return True
    return False


def end(process: "subprocess.Popen[bytes]") -> None:
    """Asks a process to end, and makes it after STOP_S."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Agent:
    """The agent's process, with the sockets that outlive it.

    Args:
        config: its configuration file.
        run_dir: for the sockets; the caller's.
        log: takes what it writes to stderr.
        commands: where its command is. It starts as root and leaves root; what it imports after that must be readable.
    """

    def __init__(self, config: Path, run_dir: Path, log: Path, commands: Path = HERE) -> None:
        self._config = config
        self._commands = commands
        self._log = log
        self._notify_path = run_dir / "notify"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._notify_path))
        self._notify_path.chmod(0o666)
        self.pos_path, self.admin_path = run_dir / "pos.sock", run_dir / "admin.sock"
        self._sockets = [_listen(self.pos_path, 0o666), _listen(self.admin_path, 0o600)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 if it does not run."""
        return 0 if self._process is None or not self.running else self._process.pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it and returns when it says that it is ready.

        Raises:
            StandError: it ended, or was not ready in time.
        """
        numbers = [sock.fileno() for sock in self._sockets]
        self.drain_notices()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._commands / "python"),
                    "-m",
                    "stand.launch",
                    "pos:admin",
                    *map(str, numbers),
                    program("license-agent", self._commands),
                    "--config",
                    str(self._config),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=numbers,
                env={**os.environ, "NOTIFY_SOCKET": str(self._notify_path)},
                start_new_session=True,
            )
        ends = time.monotonic() + READY_S
        self._notify.settimeout(0.05)
        while time.monotonic() < ends:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in self._notify.recv(4096).split(b"\n"):
                    return
            if not self.running:
                raise StandError(f"the agent ended at its start; the end of {self._log}:\n{self.log_tail()}")
        raise StandError(f"the agent was not ready within {READY_S:g} s; the end of {self._log}:\n{self.log_tail()}")

    def drain_notices(self) -> None:
        """Takes the notices that have come since; a socket that nobody reads fills up."""
        self._notify.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._notify.recv(4096)

    def log_tail(self) -> str:
        """Its last lines."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-15:])

    def stop(self) -> None:
        """Ends it; the sockets stay open, so that callers wait."""
        if self._process is not None:
            end(self._process)

    def close(self) -> None:
        """Ends it and closes the sockets."""
        self.stop()
        for sock in (*self._sockets, self._notify):
            sock.close()


def _listen(path: Path, mode: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise StandError(f"{path} cannot be made: {error.strerror or error}; choose a shorter --dir") from None
    path.chmod(mode)
    sock.listen(BACKLOG)
    return sock
