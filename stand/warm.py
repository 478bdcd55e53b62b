"""Runs many commands of one program that is loaded once: each command is a fork of it, with everything imported already.

`python -m stand.warm PROGRAM` reads commands from standard input, one JSON object a line: `arguments`, `env` (on top of its own
environment). It answers each with a line: `status`, `stdout`, `stderr`. To import the license server takes ten times as long as
most of its commands do, and a stand's start needs a dozen of them. What a command imports while it runs, the next one finds.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import IO, Any

import click


def main() -> None:
    """Serves until standard input ends."""
    name = sys.argv[1]
    (found,) = entry_points(group="console_scripts", name=name)
    entry: Callable[[], None] = found.load()
    group = getattr(sys.modules[found.module], "main", None)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.set_inheritable(replies.fileno(), False)
    os.dup2(2, 1)  # what a command prints past its redirection does not mix with the replies
    for line in sys.stdin:
        command = json.loads(line)
        if isinstance(group, click.Group):
            # Imported here, the module is there for the next command as well.
            group.get_command(click.Context(group), command["arguments"][0])
        reply, modules = _forked(entry, name, command)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        _import(modules)  # while the caller goes on


def _import(modules: list[str]) -> None:
    for name in modules:
        # What was loaded from a file by its path, as a migration is, has no name to be imported by.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _forked(entry: Callable[[], None], name: str, command: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What became of a command, and the modules of ours that it imported by itself."""
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
        tempfile.TemporaryFile() as imported,
        open(os.devnull, "rb") as nothing,
    ):
        before = frozenset(sys.modules)
        gc.freeze()  # the child's collector does not touch, and so does not copy, what is there already
        child = os.fork()
        if child == 0:
            for number, file in enumerate((nothing, out, errors)):
                os.dup2(file.fileno(), number)
            os.environ.update(command["env"])
            sys.argv = [name, *command["arguments"]]
            status = _status(entry)
            room = entry.__module__.partition(".")[0]  # what else is imported, its modules import
            names = [module for module in sys.modules if module not in before and module.split(".")[0] == room]
            imported.write("\n".join(names).encode())
            imported.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        reply = {"status": status, "stdout": _text(out), "stderr": _text(errors)}
        return reply, _text(imported).split()


def _status(entry: Callable[[], None]) -> int:
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the rest of this process
    status = 1
    try:
        entry()
        status = 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - as an interpreter does at its end
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


if __name__ == "__main__":
    main()
