"""Binds the sockets, and runs the listeners of the API and of the operators until a signal stops them."""

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
import uvicorn
import uvloop
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.base.errors import RegistryError
from server.base.limits import KEEP_ALIVE_S, MAX_HEAD_BYTES

from .door import Door

GRACEFUL_S = 10
"""How long a server that stops waits for requests under way."""
BACKLOG = 1024
WORKERS = 8
"""Threads that handle requests."""


class Listener(uvicorn.Server):
    """uvicorn on one socket, without its signals, and with a deadline for the TLS handshake.

    Args:
        app: ASGI application.
        sock: bound, not yet listening.
        protocol: makes connections; takes the arguments of uvicorn's `H11Protocol`.
        context: TLS; None for plain HTTP.
    """

    def __init__(
        self, app: Any, sock: socket.socket, protocol: Callable[..., H11Protocol], context: ssl.SSLContext | None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=H11Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACEFUL_S,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )
        self._sock = sock
        self._protocol = protocol
        self._context = context
        self._door: Door | None = None
        self.listening = False
        """Whether clients can connect. uvicorn sets its own `started` before there is a socket."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens. uvicorn itself would admit everybody to TLS, and give the handshake a whole minute."""
        # Threads share one interpreter and, with SQLite, one writer: more of them would only wait for each other.
        anyio.to_thread.current_default_thread_limiter().total_tokens = WORKERS
        await super().startup(sockets=[])
        loop = asyncio.get_running_loop()
        arguments = (self.config, self.server_state, self.lifespan.state, loop)
        server: Any
        if self._context is None:
            server = await loop.create_server(lambda: self._protocol(*arguments), sock=self._sock, backlog=BACKLOG)
        else:
            server = Door(
                self._sock, self._context, lambda visit: self._protocol(*arguments, visit=visit), time.monotonic, BACKLOG
            )
            self._door = server
        self.servers.append(server)
        self.listening = True

    def use(self, context: ssl.SSLContext) -> None:
        """New connections get this context. Open ones keep theirs."""
        self._context = context
        if self._door is not None:
            self._door.context = context

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing: `run` handles signals, for more than one server."""
        yield


@dataclass(frozen=True, slots=True)
class Chore:
    """Work beside the requests.

    Attributes:
        work: called in a thread of its own; must not raise.
        every_s: seconds between the end of one call and the next.
        stop: called when the listeners end: work that is under way then ends soon, since the process waits for it.
    """

    work: Callable[[], None]
    every_s: float
    stop: Callable[[], None] = lambda: None


def run(
    servers: list[Listener],
    ready: Callable[[], None],
    hangup: Callable[[], None],
    chores: Sequence[Chore] = (),
    until: int | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        servers: the listeners.
        ready: called when all listen.
        hangup: called on SIGHUP.
        chores: done while it serves.
        until: a descriptor; to serve ends when it is readable.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(servers, ready, hangup, chores, until))


async def _repeat(chore: Chore) -> None:
    while True:
        await asyncio.sleep(chore.every_s)
        await asyncio.to_thread(chore.work)


async def _run(
    servers: list[Listener],
    ready: Callable[[], None],
    hangup: Callable[[], None],
    chores: Sequence[Chore],
    until: int | None,
) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    def ended(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hangup)
    if until is not None:
        loop.add_reader(until, ended, until)
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    while not all(server.listening for server in servers) and not any(task.done() for task in tasks):
        await asyncio.sleep(0.01)
    if not any(task.done() for task in tasks):
        ready()
    beside = [asyncio.create_task(_repeat(chore)) for chore in chores]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop()
        for chore in chores:
            chore.stop()
        for task in beside:
            task.cancel()
    await asyncio.gather(*tasks)


def host_and_port(text: str) -> tuple[str, int]:
    """Splits `HOST:PORT`; an IPv6 host is in brackets.

    Raises:
        ValueError: the text has another form.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{text!r} is not of the form HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def tcp_socket(host: str, port: int, what: str, loopback_only: bool = False) -> socket.socket:
    """Binds a TCP socket.

    Args:
        host: an address or a name of this machine.
        port: 0 for any free port.
        what: the option that named the address, for errors.
        loopback_only: refuse any other address.

    Raises:
        RegistryError: the address is in use, not this machine's, or not allowed.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError:
        raise RegistryError(f"{what}: {host!r} is not an address of this machine") from None
    if loopback_only and not ipaddress.ip_address(address[0]).is_loopback:
        raise RegistryError(
            f"{what} must be a loopback address such as 127.0.0.1:9464, because its clients are not authenticated"
        )
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        hint = "; stop the other program, or choose another port" if error.errno == errno.EADDRINUSE else ""
        raise RegistryError(f"{what}: cannot listen on {host}:{port}: {error.strerror}{hint}") from None
    return sock


def unix_socket(path: Path) -> socket.socket:
    """Binds a Unix socket of mode 0660, for the server's user and a group that the proxy belongs to.

    Raises:
        RegistryError: another server listens there, or the socket cannot be created.
    """
    _clear(path)
    sock = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o117)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise RegistryError(f"cannot listen on {path}: {error.strerror}") from None
    finally:
        os.umask(mask)
    # At once: a path where nobody listens looks like one that a server has left behind.
    sock.listen(BACKLOG)
    return sock


def remove_socket(sock: socket.socket, path: Path, identity: tuple[int, int]) -> None:
    """Closes a Unix socket and removes its path, unless another server has put its own there since.

    Args:
        sock: of `unix_socket`.
        path: where it is.
        identity: device and inode of the path when it was bound.
    """
    sock.close()
    with contextlib.suppress(OSError):
        there = path.lstat()
        if (there.st_dev, there.st_ino) == identity:
            path.unlink()


def _clear(path: Path) -> None:
    """Removes the socket of a server that does not run any more."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise RegistryError(f"{path} exists and is not a socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise RegistryError(f"another server listens on {path}; stop it first")
