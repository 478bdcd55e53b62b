"""Commands for the API: serve it, print its OpenAPI document, write the files for a proxy in front of it."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import click

from common.sd_notify import Notifier
from server.api.app import create_app
from server.base.errors import RegistryError
from server.base.jsonlog import log_to_stderr
from server.base.settings import place_of
from server.cli.base.options import directory_option, opened
from server.cli.base.output import out_option, write
from server.enrollment.service import LEVELS, Level, Policy
from server.operators.app import create_app as create_operator_app
from server.registry.database import MOST_CONNECTIONS
from server.serving import Options, Sockets, check, load_roots, write_tls_files
from server.serving import bind as bind_sockets
from server.serving import serve as run_server
from server.web.listeners import host_and_port, remove_socket
from server.web.proxyusers import DEFAULT, uids_of
from server.workers import ALIVE_S, WORKER_OPTION, Supervisor, inherited, start_again

MAX_WORKERS = 64
FOR_COMMANDS = 10
"""Connections of PostgreSQL that are left to operators' commands."""
_log = logging.getLogger("license_server")


def _address(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    try:
        return host_and_port(text)
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None


def _levels(_ctx: click.Context, _param: click.Parameter, text: str) -> frozenset[Level]:
    names = {name.strip() for name in text.split(",")}
    if not names <= set(LEVELS):
        unknown = ", ".join(sorted(names - set(LEVELS)))
        raise click.BadParameter(f"{unknown!r} is not a level; the levels are {', '.join(LEVELS)}")
    return frozenset(level for level in LEVELS if level in names)


@click.command()
@directory_option
@click.option("--bind", callback=_address, metavar="HOST:PORT", help="Listen on this address, with mutual TLS 1.3.")
@click.option(
    "--unix",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Listen on this socket, behind nginx (packaging/server/nginx.conf).",
)
@click.option(
    "--proxy-user",
    "proxy_users",
    multiple=True,
    metavar="USER",
    help=f"With --unix: the user that nginx runs as; nobody else may connect. May be repeated.  [default: {DEFAULT}]",
)
@click.option(
    "--ops", callback=_address, metavar="HOST:PORT", help="Serve health, readiness and metrics here; a loopback address."
)
@click.option(
    "--operators",
    callback=_address,
    metavar="HOST:PORT",
    help="Serve the operator API here, with TLS 1.3; people sign in with a certificate, programs with a token.",
)
@click.option(
    "--accept",
    callback=_levels,
    default=",".join(LEVELS),
    show_default=True,
    metavar="LEVELS",
    help="Levels of devices that may be provisioned.",
)
@click.option(
    "--ek-roots",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of TPM manufacturers' root certificates (*.pem, *.der). Without it, no device is 'attested'.",
)
@click.option("--openapi", "with_openapi", is_flag=True, help="Serve the OpenAPI document too.")
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    default=1,
    show_default=True,
    help="Processes that serve, on PostgreSQL only. With --ops HOST:PORT, each has a port of its own, from PORT on.",
)
@click.option(WORKER_OPTION, "worker", hidden=True)
@click.option(
    "--check", "check_only", is_flag=True, help="Serve nothing: check the options, the certificate and the client CAs."
)
def serve(
    directory: Path,
    bind: tuple[str, int] | None,
    unix: Path | None,
    proxy_users: tuple[str, ...],
    ops: tuple[str, int] | None,
    operators: tuple[str, int] | None,
    accept: frozenset[Level],
    ek_roots: Path | None,
    with_openapi: bool,
    workers: int,
    worker: str | None,
    check_only: bool,
) -> None:
    """Serve the API to agents and devices. SIGTERM stops it; SIGHUP reloads the TLS certificate and the client CAs."""
    if (bind is None) == (unix is None):
        raise RegistryError("give either an address with --bind HOST:PORT, or a socket with --unix PATH")
    if ops is not None and ops == bind and ops[1] != 0:
        raise RegistryError("--bind and --ops name the same address: give operators a port of their own")
    if operators is not None and operators[1] != 0 and operators in (bind, ops):
        raise RegistryError("--operators names the address of another listener: give the operator API a port of its own")
    proxies = frozenset() if unix is None else uids_of(proxy_users or (DEFAULT,))
    roots = [] if ek_roots is None else load_roots(ek_roots)
    listen = _ddi_address(directory, (bind, ops, operators))
    options = Options(bind, unix, ops, Policy(accept, roots), with_openapi, proxies, operators, listen)
    if worker is not None:
        found = inherited(worker)
        _serve(directory, options, found.sockets, found.tell_ready, found.line.fileno(), (found.tell_alive, ALIVE_S))
        return
    with opened(directory) as server:  # what is wrong is said once, before anything is bound
        if workers > 1 and server.database.is_sqlite:
            raise RegistryError(
                "SQLite has one writer at a time, so more processes would only wait for each other: "
                "leave --workers out, or move the registry to PostgreSQL"
            )
        if check_only:
            check(server)
            return
        needed, most = workers * MOST_CONNECTIONS + FOR_COMMANDS, server.database.connections()
        if workers > 1 and most is not None and needed > most:
            raise RegistryError(
                f"{workers} workers and the commands beside them may need {needed} connections, and PostgreSQL takes {most}: "
                f"raise its max_connections, or use at most {max(1, (most - FOR_COMMANDS) // MOST_CONNECTIONS)} workers"
            )
    sockets = bind_sockets(options, workers)
    bound = None if unix is None else unix.lstat()
    try:
        if workers == 1:
            _serve(directory, options, sockets[0], lambda: None)
        else:
            sys.exit(_supervise(sockets))
    finally:
        if unix is not None and bound is not None:
            remove_socket(sockets[0].api, unix, (bound.st_dev, bound.st_ino))


def _ddi_address(directory: Path, others: tuple[tuple[str, int] | None, ...]) -> tuple[str, int] | None:
    """The address of the listener for devices that speak hawkBit's DDI, by the settings; None for no such listener."""
    ddi = place_of(directory).ddi
    if ddi is None:
        return None
    if ddi.listen[1] != 0 and ddi.listen in others:
        raise RegistryError(
            "'listen' in [ddi] of settings.toml names the address of another listener: give it a port of its own"
        )
    return ddi.listen


def _serve(
    directory: Path,
    options: Options,
    sockets: Sockets,
    ready: Callable[[], None],
    until: int | None = None,
    alive: tuple[Callable[[], None], float] | None = None,
) -> None:
    lines = log_to_stderr()
    try:
        with opened(directory) as server:
            run_server(server, options, lines, sockets, ready, until, alive)
    finally:
        lines.finish()


def _supervise(sockets: list[Sockets]) -> int:
    lines = log_to_stderr()
    try:
        return Supervisor(sockets, start_again, Notifier(), _say).run()
    finally:
        lines.finish()


def _say(text: str, fields: dict[str, object]) -> None:
    _log.info(text, extra={"fields": fields})


@click.command()
@click.option("--operators", is_flag=True, help="The document of the operator API, instead of that of the agents' API.")
@out_option
def openapi(operators: bool, out: Path | None) -> None:
    """Print the API's OpenAPI document."""
    write(operator_document() if operators else document(), out)


def document() -> str:
    """The OpenAPI document as JSON."""
    return json.dumps(create_app(None, None, None).openapi(), indent=2)  # type: ignore[arg-type]


def operator_document() -> str:
    """The OpenAPI document of the operator API as JSON."""
    return json.dumps(create_operator_app(None, b"").openapi(), indent=2)  # type: ignore[arg-type]


@click.command("tls-files")
@directory_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The directory for the files.")
def tls_files(directory: Path, out: Path) -> None:
    """Write the certificate, its key and the client CAs for a proxy: server.pem, server.key, clients.pem."""
    with opened(directory) as server:
        write_tls_files(server.keys, out)


COMMANDS = (serve, openapi, tls_files)
