"""Runs a program at a terminal, and finds out whether it read anything from there.

Whether a program asks is not judged by its words: what was typed ahead is still in the terminal's queue when the program ends,
unless the program has read it, or has thrown it away as a prompt for a passphrase does.
"""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.keptterminal import Command, KeptProgram
from tests.support.waiting import READY_S

TYPED = b"n\n" * 8
"""No to every question, and an answer to every prompt."""


@dataclass(frozen=True)
class AtTerminal:
    """How a program ended.

    Attributes:
        status: exit status; negative for a signal.
        output: what the terminal showed.
        asked: the program read from the terminal.
    """

    status: int
    output: str
    asked: bool


def at_terminal(
    command: Sequence[str],
    env: Mapping[str, str],
    directory: Path,
    until: str = "",
    stop: int = signal.SIGTERM,
    kept: KeptProgram | None = None,
) -> AtTerminal:
    """Runs a program to its end.

    Args:
        command: its words.
        env: the whole environment.
        directory: where it runs.
        until: for a program that serves: what it writes once it does; it is then asked to stop.
        stop: the signal that asks it; SIGINT is what Ctrl-C sends.
        kept: has the program of the command's first word loaded, which it then is not again; not for a program that serves.

    Raises:
        TimeoutError: it does not end.
    """
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    os.write(ours, TYPED)

    def own_terminal() -> None:
        # A prompt for a passphrase opens /dev/tty: without this, that would be the terminal that the tests were started from.
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # Tests that a shell started in the background ignore SIGINT, and so would the program.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process: subprocess.Popen[bytes] | Command
    if kept is not None:
        process = kept.begin(command[1:], env, directory, theirs)
    else:
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=directory,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            umask=0o022,
            start_new_session=True,
            preexec_fn=own_terminal,
        )
    shown, typed, stopped = b"", time.monotonic(), False
    ends = typed + 3 * READY_S
    try:
        while process.poll() is None:
            if time.monotonic() > ends:
                raise TimeoutError(f"{' '.join(command)} does not end: {shown.decode(errors='replace')}")
            shown += _read(ours)
            if until and until in shown.decode(errors="replace") and not stopped and isinstance(process, subprocess.Popen):
                process.send_signal(stop)
                stopped = True
            if time.monotonic() > typed + 2 and _queued(theirs) == 0:
                # A prompt that threw away what was typed ahead waits for something new.
                os.write(ours, b"n\n")
                typed = time.monotonic()
        while more := _read(ours):
            shown += more
        return AtTerminal(process.wait(), shown.decode(errors="replace").replace("\r\n", "\n"), _left(theirs) != TYPED)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)
        os.close(theirs)


def _read(descriptor: int) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], 0.1)
    return os.read(descriptor, 65_536) if ready else b""


def _queued(theirs: int) -> int:
    ready, _, _ = select.select([theirs], [], [], 0)
    return len(ready)


def _left(theirs: int) -> bytes:
    """What nobody has read."""
    os.set_blocking(theirs, False)
    settings = termios.tcgetattr(theirs)
    settings[3] |= termios.ICANON
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    found = b""
    try:
        while data := os.read(theirs, 4096):
            found += data
    except BlockingIOError:
        pass
    return found
