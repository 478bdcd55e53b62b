"""Runs a program of this machine within a bound, and makes a check of how it ended."""

import os
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.files import os_problem
from ipc.installermessages import Check

ASK_S = 10.0
"""How long systemctl may take to answer."""
MAX_OUTPUT_CHARS = 64 * 1024
SYSTEMCTL = "/usr/bin/systemctl"


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a program.

    Attributes:
        status: its exit status; None if it did not end in time, or could not be started.
        output: what it wrote.
    """

    status: int | None
    output: str


Run = Callable[[list[str], float], Ran]
"""Runs a program for at most so many seconds."""


def run(command: list[str], within_s: float) -> Ran:
    """Runs a program of this machine, with an empty environment, and keeps the beginning of what it writes."""
    ends = time.monotonic() + within_s
    try:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # In the sandbox /proc does not show process 1, so systemctl could not find out that this is no chroot.
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "SYSTEMD_IGNORE_CHROOT": "1"},
        )
    except OSError as error:
        return Ran(None, os_problem(error, command[0]))
    with started:
        try:
            output = _beginning_of(started, ends)
            status = started.wait(max(0.0, ends - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            started.kill()
            return Ran(None, f"{command[0]} did not end within {within_s:g} s")
        except BaseException:
            started.kill()
            raise
    return Ran(status, output.decode("utf-8", "replace").strip()[:MAX_OUTPUT_CHARS])


def _beginning_of(started: "subprocess.Popen[bytes]", ends: float) -> bytes:
    """Reads to the end of the output, and drops what is beyond the bound: one entry of a product in the journal may be huge."""
    if started.stdout is None:
        return b""
    kept, number = b"", started.stdout.fileno()
    while select.select([number], [], [], max(0.0, ends - time.monotonic()))[0]:
        piece = os.read(number, MAX_OUTPUT_CHARS)
        if not piece:
            return kept
        kept += piece[: MAX_OUTPUT_CHARS - len(kept)]
        if time.monotonic() >= ends:
            break
    raise TimeoutError


def checked(name: str, ran: Ran, problem: str) -> Check:
    """The check that a program must end with status 0."""
    if ran.status == 0:
        return Check(name=name, ok=True, text="")
    return failed(name, f"{problem}: {ran.output}" if ran.output else problem)


def failed(name: str, text: str) -> Check:
    """A check that failed, or could not be made."""
    return Check(name=name, ok=False, text=" ".join(text.split())[:500])
