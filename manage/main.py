"""Reads the configuration, binds the port, confines the process and serves. Only here are clock and process touched."""

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

from common.listening import ListenError
from common.logqueue import LogQueue, PrefixFormatter, StreamSink, encoder, install
from common.sd_notify import Notices
from common.version import VERSION
from confine.basics import basic_rules
from confine.dumps import forbid_dumps
from confine.errors import ConfineError
from confine.landlock import Access, PathRule, restrict
from confine.noexec import forbid_exec
from settings.errors import ConfigError

from .agent import AdminConnection
from .app import App
from .config import DEFAULT_PATH, ManageConfig, load_config, load_credentials
from .door import Door
from .http import Times
from .tls import server_context

log = logging.getLogger("manage")

EXIT_OK, EXIT_UNAVAILABLE, EXIT_CONFIG = 0, 69, 78
FILES_EVERY_S = 60.0
"""How often certificate, key and admin CA are read again: a new admin CA counts without a restart."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="license-agent-manage",
        description="Serves a REST interface for administrators of the license agent, on loopback.",
        epilog="Exit status: 0 success, 2 wrong usage, 69 the port cannot be used, 78 the configuration is refused.",
    )
    parser.add_argument("--version", action="version", version=f"license-agent-manage {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("serve", "serve until a signal ends it"),
        ("check-config", "check the configuration and the files that it names, and exit"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="PATH", help="default: %(default)s")
    return parser


def _bind(config: ManageConfig) -> socket.socket:
    """Binds the port.

    Raises:
        ListenError: it cannot be had.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in config.address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((config.address, config.port))
    except OSError as error:
        sock.close()
        text = f"{config.address} port {config.port} cannot be used: {error.strerror}"
        raise ListenError(f"{text}; set another 'port' in [listen], or stop what uses this one") from None
    sock.setblocking(False)
    return sock


async def _serve(config: ManageConfig, sock: socket.socket, lines: LogQueue) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    flowing = loop.create_task(lines.keep_flowing(asyncio.sleep))

    async def connect() -> AdminConnection:
        return await AdminConnection.open(config.socket, config.agent_uid)

    app = App(connect, lambda: secrets.token_hex(16), time.monotonic)
    door = Door(sock, app.handle, Times(), time.monotonic, time.time)
    door.context = server_context(config, load_credentials(config))
    log.info("serving at %s", _address(config))
    notices = Notices()
    notices.send("READY=1")
    looked = time.monotonic()
    try:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await stop.wait()
            app.tidy()
            if time.monotonic() - looked >= FILES_EVERY_S:
                looked = time.monotonic()
                _look(config, door)
    finally:
        door.close()
        app.close()
        notices.close()
        flowing.cancel()


def _look(config: ManageConfig, door: Door) -> None:
    """Reads the files again. While they cannot be used, nobody gets in."""
    try:
        door.context = server_context(config, load_credentials(config))
    except ConfigError as error:
        door.context = None
        for problem in error.problems:
            log.error("no connection is accepted: %s", problem)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "check-config":
        return _check(options.config)
    lines = LogQueue(encoder(PrefixFormatter()), StreamSink())
    install(lines, logging.WARNING)
    log.setLevel(logging.INFO)
    try:
        return _run(options, lines)
    finally:
        lines.finish()


def _check(path: Path) -> int:
    try:
        config = load_config(path)
        server_context(config, load_credentials(config))
    except ConfigError as error:
        sys.stderr.write("".join(f"license-agent-manage: {problem}\n" for problem in error.problems))
        return EXIT_CONFIG
    sys.stdout.write(f"{path}: no problems found ({_address(config)})\n")
    return EXIT_OK


def _address(config: ManageConfig) -> str:
    host = f"[{config.address}]" if ":" in config.address else config.address
    return f"https://{host}:{config.port}/"


def _run(options: argparse.Namespace, lines: LogQueue) -> int:
    try:
        forbid_exec()
        os.umask(0o077)
        forbid_dumps()
        config = load_config(options.config)
        server_context(config, load_credentials(config))
        sock = _bind(config)
        # The port is bound: it binds no other one, and connects to nothing but Unix sockets.
        files = {config.certificate.parent, config.key.parent, config.admin_ca.parent}
        abi = restrict([*basic_rules(), *(PathRule(path, Access.READ) for path in sorted(files))], tcp=False)
    except ConfigError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return EXIT_CONFIG
    except (ListenError, ConfineError) as error:
        log.error("%s", error)
        return EXIT_UNAVAILABLE
    confined = "this kernel has no Landlock" if abi is None else f"Landlock ABI {abi}"
    log.info("confined: no program can be started; %s", confined)
    with sock:
        asyncio.run(_serve(config, sock, lines))
    return EXIT_OK


def entry() -> None:
    """The console script."""
    sys.exit(main())
