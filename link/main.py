"""Reads the link's configuration, confines the process and serves. Only here are clock and process touched."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

from common.listening import ListenError
from common.logqueue import LogQueue, PrefixFormatter, StreamSink, encoder, install
from common.version import VERSION
from confine.basics import basic_rules
from confine.dumps import forbid_dumps
from confine.errors import ConfineError
from confine.landlock import restrict
from confine.noexec import forbid_exec
from settings.errors import ConfigError

from .config import DEFAULT_PATH, LinkConfig, load_config
from .listener import DEFAULT_SOCKET, inherited_socket, own_socket
from .service import Service
from .upstreams import load_libraries

log = logging.getLogger("link")

EXIT_OK, EXIT_UNAVAILABLE, EXIT_CONFIG = 0, 69, 78
DEFAULT_IDLE_S = 30.0


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise ValueError
    return value


_seconds.__name__ = "number of seconds"  # what argparse calls it in its error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="license-agent-link",
        description="Fetches over mutual TLS for the license agent.",
        epilog="Exit status: 0 success, 2 wrong usage, 69 the socket cannot be used, 78 the configuration is refused.",
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="PATH", help="default: %(default)s")
    parser.add_argument(
        "--socket", type=Path, default=DEFAULT_SOCKET, metavar="PATH", help="if systemd passes none; default: %(default)s"
    )
    parser.add_argument(
        "--idle",
        type=_seconds,
        default=DEFAULT_IDLE_S,
        metavar="SECONDS",
        help="exit after this time without a connection, if systemd passed the socket; default: %(default)g",
    )
    parser.add_argument("--version", action="version", version=f"license-agent-link {VERSION}")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    return parser


def _serve(listener: socket.socket, config: LinkConfig, idle_s: float | None, lines: LogQueue) -> None:
    asyncio.run(load_libraries())  # before the first fork, so that no session imports them again
    Service(listener, config, time.monotonic, lines, idle_s).serve()


def main(arguments: list[str] | None = None) -> int:
    """Runs the link and returns its exit status."""
    options = _parser().parse_args(arguments)
    # There is nothing to save: a signal ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    lines = LogQueue(encoder(PrefixFormatter()), StreamSink())
    install(lines, logging.WARNING)
    log.setLevel(logging.INFO)
    try:
        return _run(options, lines)
    finally:
        lines.finish()


def _run(options: argparse.Namespace, lines: LogQueue) -> int:
    try:
        forbid_exec()
        os.umask(0o077)
        forbid_dumps()
        config = load_config(options.config)
        if options.check:
            return EXIT_OK
        inherited = inherited_socket()
        listener = inherited or own_socket(options.socket)
        # Its own socket exists now, so it writes nothing more; the configuration says where it may connect to.
        abi = restrict(basic_rules(), tcp=True)
    except ConfigError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return EXIT_CONFIG
    except (ListenError, ConfineError) as error:
        log.error("%s", error)
        return EXIT_UNAVAILABLE
    files = "this kernel has no Landlock" if abi is None else f"Landlock ABI {abi}"
    log.info("confined: no program can be started; %s", files)
    with listener:
        _serve(listener, config, options.idle if inherited else None, lines)
    return EXIT_OK


def entry() -> None:
    """The console script."""
    sys.exit(main())
