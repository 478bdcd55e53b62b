"""Breaks a command at each of its steps: in a child process, the nth change of a file or the nth commit fails, or kills it.

A step is an event of Python's audit hooks (PEP 578) that changes the file system, or a commit of SQLAlchemy. SQLite and libpq
write without Python; what is between their steps is one transaction.
"""

import contextlib
import errno
import gc
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

Kind = Literal["kill", "full"]
_CHANGES = frozenset({"os.rename", "os.link", "os.remove", "os.mkdir", "os.symlink", "os.truncate", "shutil.copyfile"})
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MOST = 80
"""Steps of a command that the tests break, at most."""


@dataclass(frozen=True)
class Broken:
    """How a child ended.

    Attributes:
        step: what was broken; None if the command has fewer steps.
        code: exit status; negative for a signal.
        output: standard output and error.
    """

    step: str | None
    code: int
    output: str


def each_step(
    act: Callable[[], Any],
    prepare: Callable[[], Any],
    kind: Kind,
    scratch: Path,
    warm: Callable[[], Any] | None = None,
) -> Iterator[Broken]:
    """Breaks the first step of `act`, then the second, and so on to the last.

    Args:
        act: is run in a child process.
        prepare: is run before each, in this process.
        kind: `kill` ends the process before the step; `full` makes the step fail as a full disk does.
        scratch: a directory for what the children print.
        warm: does the same in this process, once after a `prepare` of its own: what it loads, and the statements that it
            compiles, are then there in each child.
    """
    if warm is not None:
        prepare()
        warm()
    for number in range(MOST):
        prepare()
        done = broken_at(number, act, kind, scratch)
        if done.step is None:
            assert number > 0 and done.code == 0, done
            return
        yield done
    raise AssertionError(f"more than {MOST} steps")


def broken_at(number: int, act: Callable[[], Any], kind: Kind, scratch: Path) -> Broken:
    """Runs `act` in a child process whose step `number`, from 0, is broken."""
    output, note = scratch / "output", scratch / "step"
    note.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _child(number, act, kind, output, note)
    _pid, status = os.waitpid(child, 0)
    step = note.read_text() if note.exists() else None
    return Broken(step, os.waitstatus_to_exitcode(status), output.read_text("utf-8", "replace"))


def _is_device(path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISCHR(os.stat(path).st_mode)
    return False


def _child(number: int, act: Callable[[], Any], kind: Kind, output: Path, note: Path) -> None:
    code = 70
    gc.freeze()  # the collector does not touch, and so does not copy, the many objects of all the tests before
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        left, quiet = number, False

        def step(name: str) -> None:
            nonlocal left, quiet
            if quiet:
                return
            left -= 1
            if left >= 0:
                return
            quiet = True
            note.write_text(name)
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "commit":
                raise OperationalError("COMMIT", {}, OSError(errno.ENOSPC, "database or disk is full"))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name.partition(" ")[2] or None)

        def heard(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "open" and not (isinstance(arguments[0], str) and arguments[2] & _WRITES):
                return  # only reads, or gives a Python file to a descriptor
            if name == "open" or name in _CHANGES:
                where = str(arguments[0])
                if not where.startswith("/proc/") and "__pycache__" not in where and not _is_device(where):
                    step(f"{name} {where}")

        def committed(connection: Any) -> None:
            if not connection.get_execution_options().get("reading"):
                step("commit")

        event.listen(Engine, "commit", committed)
        sys.addaudithook(heard)
        try:
            act()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0) if isinstance(ended.code, int | None) else 1
        except Exception as error:
            sys.stderr.write(f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
