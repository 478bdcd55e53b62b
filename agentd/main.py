"""`license-agent`: the console script. Locks the process down, then runs the daemon or one of the other commands."""

import argparse
import logging
import os
import sys

import uvloop

from common.listening import ListenError
from confine.errors import ConfineError
from confine.noexec import forbid_exec
from hwsec.errors import HwsecError
from hwsec.secretmem import forbid_dumps
from settings.errors import ConfigError

from .base import journal
from .base.errors import StartError
from .commands import COMMANDS, EXIT_CONFIG, EXIT_FAILED, EXIT_UNAVAILABLE, parser
from .runner import Runner
from .sockets.listeners import inherited_sockets

log = logging.getLogger(__name__)


def _run(options: argparse.Namespace) -> int:
    journal.set_up()
    try:
        forbid_exec()
    except ConfineError as error:
        log.error("%s", error)
        return EXIT_UNAVAILABLE
    forbid_dumps()
    os.umask(0o077)
    # What works in another thread (archives, checks of the log) gives the interpreter back to verdicts ten times as soon.
    sys.setswitchinterval(0.0005)
    try:
        inherited = inherited_sockets()
    except ListenError as error:
        log.error("%s", error)
        return EXIT_UNAVAILABLE

    async def main() -> int:
        return await Runner(options.config, inherited).run()

    return uvloop.run(main())


def entry() -> None:
    """The console script."""
    options = parser().parse_args()
    run = COMMANDS.get(options.command, _run)
    try:
        status = run(options)
    except ConfigError as error:
        sys.stderr.write("".join(f"license-agent: {problem}\n" for problem in error.problems))
        status = EXIT_CONFIG
    except (HwsecError, StartError) as error:
        sys.stderr.write(f"license-agent: {error}\n")
        status = EXIT_UNAVAILABLE
    except OSError as error:
        sys.stderr.write(f"license-agent: {error.filename}: {error.strerror}\n")
        status = EXIT_FAILED
    # A hung TPM call keeps its thread; the process must be able to end all the same.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
