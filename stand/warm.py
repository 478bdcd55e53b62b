"""Runs many commands of one program that is loaded once: each command is a fork of it, with everything imported already.

`python -m stand.warm PROGRAM FD` takes commands from connections to the listening Unix socket FD, one each; `asked` is the
other side. To import the license server takes ten times as long as most of its commands do; a stand's start needs a dozen of
them, and the tests of a till hundreds. What a command imports while it runs, the next one finds. The program ends when its
standard input does.
"""

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

_LENGTH = 4
_PATIENCE_S = 10.0


def asked(path: Path, arguments: Sequence[str], env: Mapping[str, str], files: Sequence[int]) -> int | None:
    """Has a loaded program run a command, in the caller's working directory.

    Args:
        path: the program's socket; only its owner is served.
        arguments: of the command.
        env: its whole environment.
        files: descriptors of its standard input, output and error.

    Returns:
        Its exit status, negative for a signal; None if no program is loaded there for this user.

    Raises:
        ConnectionError: the loaded program has ended meanwhile; nobody knows what the command has done.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    request = json.dumps({"arguments": list(arguments), "env": dict(env), "umask": mask}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            if path.stat().st_uid != os.geteuid():
                return None
            sock.connect(str(path))
        except OSError:
            return None
        here = os.open(".", os.O_PATH | os.O_DIRECTORY)
        try:
            socket.send_fds(sock, [len(request).to_bytes(_LENGTH, "big")], [*files, here])
        finally:
            os.close(here)
        sock.sendall(request)
        answer = sock.recv(16)
    if not answer:
        raise ConnectionResetError
    return int(answer)


def main() -> None:
    """Serves until standard input ends."""
    name, listener = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    listener.set_inheritable(False)
    (found,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    entry: Callable[[], None] = found.load()
    group = getattr(sys.modules[found.module], "main", None)
    news, teller = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who looks after a command
    poll = select.poll()
    poll.register(0, 0)
    poll.register(news, select.POLLIN)
    poll.register(listener, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if 0 in ready:
            return
        if news.fileno() in ready:
            _import(news.recv(1 << 20).decode().split())
        elif listener.fileno() in ready:
            with listener.accept()[0] as asking, contextlib.suppress(OSError, ValueError, KeyError):
                request, files = _request(asking)
                if isinstance(group, click.Group) and request["arguments"]:
                    # Imported here, the module is there for the next command as well.
                    group.get_command(click.Context(group), request["arguments"][0])
                gc.freeze()  # the child's collector does not touch, and so does not copy, what is there already
                if os.fork() == 0:
                    _look_after(asking, teller, lambda: _run(name, entry, request, files))  # noqa: B023 - called at once
                for number in files:
                    os.close(number)


def _request(asking: socket.socket) -> tuple[dict[str, Any], list[int]]:
    asking.settimeout(_PATIENCE_S)
    begun, files, _, _ = socket.recv_fds(asking, _LENGTH, 4)
    with asking.makefile("rb") as stream:
        length = int.from_bytes(begun + stream.read(_LENGTH - len(begun)), "big")
        return json.loads(stream.read(length)), files


def _import(modules: list[str]) -> None:
    for name in modules:
        # What was loaded from a file by its path, as a migration is, has no name to be imported by.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _look_after(asking: socket.socket, teller: socket.socket, run: Callable[[], tuple[int, list[str]]]) -> None:
    """Runs a command in a process of its own and sends back how it ended; ends it if who asked has gone. Does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        asking.close()
        status, modules = run()
        with contextlib.suppress(OSError):
            teller.send("\n".join(modules).encode())
        os._exit(status)
    poll = select.poll()
    ended = os.pidfd_open(child)
    poll.register(ended, select.POLLIN)
    poll.register(asking, 0)
    if ended not in dict(poll.poll()):
        os.kill(child, signal.SIGTERM)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        asking.send(str(status).encode())
    os._exit(0)


def _run(name: str, entry: Callable[[], None], request: dict[str, Any], files: list[int]) -> tuple[int, list[str]]:
    """Becomes the command; its exit status, and the modules of ours that it has imported by itself."""
    before = frozenset(sys.modules)
    *standard, here = files
    for number, file in enumerate(standard):
        os.dup2(file, number)
    os.fchdir(here)
    for number in files:
        os.close(number)
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    place = Path(sys.executable).with_name(name)  # a command may look for others beside its own
    sys.argv = [str(place) if place.exists() else name, *request["arguments"]]
    sys.modules["__main__"].__package__ = None  # click would call the command after the module that this process began as
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    status = _status(entry)
    room = entry.__module__.partition(".")[0]  # what else is imported, its modules import
    return status, [module for module in sys.modules if module not in before and module.split(".")[0] == room]


def _status(entry: Callable[[], None]) -> int:
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
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    return status


if __name__ == "__main__":
    main()
