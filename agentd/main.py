"""`license-agent`: the console script. Locks the process down, then runs the daemon or one of the other commands."""

import argparse
import asyncio
import logging
import os
import sys

import uvloop

from common.argv import to_back, to_front
from common.files import os_problem
from common.listening import ListenError
from common.logqueue import LogQueue
from confine.errors import ConfineError
from confine.noexec import forbid_exec
from hwsec.errors import HwsecError
from hwsec.secretmem import forbid_dumps
from settings.errors import ConfigError

from .base import journal
from .base.errors import StartError, StopError
from .commands import COMMANDS, EXIT_CONFIG, EXIT_FAILED, EXIT_UNAVAILABLE, parser
from .runner import Runner
from .sockets.listeners import inherited_sockets

log = logging.getLogger(__name__)


def _run(options: argparse.Namespace) -> int:
    lines = journal.set_up()
    try:
        return _serve(options, lines)
    except Exception as error:  # the last place that can log what ended the agent
        problems, status = _explained(error)
        for problem in problems:
            log.error("%s", problem)
        if not problems:
            log.critical("the agent failed", exc_info=error)
        return status
    finally:
        lines.finish()


def _serve(options: argparse.Namespace, lines: LogQueue) -> int:
    forbid_exec()
    forbid_dumps()
    os.umask(0o077)
    # What works in another thread (archives, checks of the log) gives the interpreter back to verdicts ten times as soon.
    sys.setswitchinterval(0.0005)
    runner, loop = Runner(options.config, inherited_sockets()), uvloop.new_event_loop()

    async def main() -> int:
        flowing = asyncio.create_task(lines.keep_flowing(asyncio.sleep))
        try:
            return await runner.run()
        finally:
            flowing.cancel()

    # Without `asyncio.run`, which would wait for threads at the end: one may hang at a disk that does not answer.
    return loop.run_until_complete(main())


def _explained(error: Exception) -> tuple[list[str], int]:
    """What to tell of an error, and the exit status; nothing to tell of one that nobody expects."""
    if isinstance(error, ConfigError):
        return error.problems, EXIT_CONFIG
    if isinstance(error, HwsecError | StartError | ListenError | ConfineError):
        return [str(error)], EXIT_UNAVAILABLE
    if isinstance(error, StopError):
        return [str(error)], EXIT_FAILED
    if isinstance(error, OSError):
        return [os_problem(error)], EXIT_FAILED
    return [], EXIT_FAILED


def entry() -> None:
    """The console script."""
    options = parser().parse_args(to_front(to_back(sys.argv[1:], {"--json"}, {"--config"}), {"--version"}, {"--config"}))
    run = COMMANDS.get(options.command, _run)
    try:
        status = run(options)
    except (ConfigError, HwsecError, StartError, OSError) as error:
        problems, status = _explained(error)
        sys.stderr.write("".join(f"license-agent: {problem}\n" for problem in problems))
    # A hung TPM call keeps its thread; the process must be able to end all the same.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
