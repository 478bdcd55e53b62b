"""A program that is loaded once, and each of whose commands is a process of its own at a terminal (see `stand.warm`).

To load the license server takes ten times as long as most of its commands do.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import stand.warm
from tests.support.waiting import READY_S

_DIRECTORY = "KEPTTERMINAL_DIRECTORY"


class Command:
    """A command that runs, as `subprocess.Popen` has it.

    Args:
        ended: its exit status, in time.
        kill: ends it, and the program with it.
    """

    def __init__(self, ended: Future[int | None], kill: Callable[[], None]) -> None:
        self._ended = ended
        self.kill = kill

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.wait() if self._ended.done() else None

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        status = self._ended.result(READY_S)
        assert status is not None, "the program is not loaded any more"
        return status


class KeptProgram:
    """A program that stays loaded until it is closed.

    Args:
        name: of an installed command.
        path: for its socket.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._path = path
        self._threads = ThreadPoolExecutor(1)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            number = listener.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.keptterminal", name, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[number],
                start_new_session=True,
            )

    def begin(self, arguments: Sequence[str], env: Mapping[str, str], directory: Path, terminal: int) -> Command:
        """Begins a command in a directory, with a terminal as its own."""
        given = {**env, _DIRECTORY: str(directory)}
        ended = self._threads.submit(stand.warm.asked, self._path, arguments, given, [terminal] * 3)
        return Command(ended, self.close)

    def close(self) -> None:
        """Ends the program, and what it runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.communicate()
        self._threads.shutdown()


def _main() -> None:
    usual = stand.warm._status

    def at_terminal(entry: Callable[[], None]) -> int:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.umask(0o022)
        os.chdir(os.environ.pop(_DIRECTORY))
        return usual(entry)

    stand.warm._status = at_terminal
    stand.warm.main()


if __name__ == "__main__":
    _main()
