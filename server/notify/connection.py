"""Connects to other machines over HTTPS: to addresses that were judged, and nowhere else; each request ends by a time.

Webhooks and what is read from an OpenID provider use it. No proxy of the environment is used.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpcore

from common.addresses import Network, allowed

Resolve = Callable[[str, int], Sequence[str]]


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system's resolver."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class NotAllowed(httpcore.ConnectError):
    """A name leads to an address that is not allowed."""


class _Bounded(httpcore.NetworkStream):
    """A connection whose steps end by a time: a receiver that sends a byte now and then does not keep it."""

    def __init__(self, inner: httpcore.NetworkStream, left: Callable[[], float]) -> None:
        self._inner = inner
        self._left = left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._step(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._step(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        step = self._step(timeout, httpcore.ConnectTimeout)
        return _Bounded(self._inner.start_tls(ssl_context, server_hostname, step), self._left)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def _step(self, timeout: float | None, late: type[httpcore.TimeoutException]) -> float:
        left = self._left()
        if left <= 0:
            raise late("the request takes too long")
        return left if timeout is None else min(timeout, left)


class JudgedBackend(httpcore.NetworkBackend):
    """Connects to the first address of a name that answers, if all of them are allowed.

    Args:
        listed: networks that are allowed although they are not public.
        resolve: returns the addresses of a name.
        left: seconds until the whole request must have ended.
        listed_by: where networks are listed, for the error's text.
    """

    def __init__(self, listed: Sequence[Network], resolve: Resolve, left: Callable[[], float], listed_by: str) -> None:
        self._listed_by = listed_by
        self._listed = listed
        self._resolve = resolve
        self._left = left
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as problem:
            raise httpcore.ConnectError(f"the name {host} cannot be resolved") from problem
        for address in addresses:
            if not allowed(address, self._listed):
                raise NotAllowed(f"{host} has the address {address}, which is not public; see {self._listed_by}")
        failure: Exception = httpcore.ConnectError(f"the name {host} has no address")
        for address in addresses[:4]:
            left = self._left()
            if left <= 0:
                raise httpcore.ConnectTimeout("the request takes too long")
            step = left if timeout is None else min(timeout, left)
            try:
                stream = self._inner.connect_tcp(address, port, step, local_address, socket_options)
                return _Bounded(stream, self._left)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as problem:
                failure = problem
        raise failure

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise httpcore.ConnectError("Unix sockets are not used")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def cause(problem: BaseException) -> str:
    """What went wrong, without what the other side has sent."""
    found: BaseException | None = problem
    while found is not None:
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"its certificate does not verify: {found.verify_message}"
        if isinstance(found, ssl.SSLError):
            return f"TLS fails: {found.reason or 'handshake'}"
        if isinstance(found, ConnectionRefusedError):
            return "the connection is refused"
        if isinstance(found, ConnectionResetError):
            return "the connection was reset"
        found = found.__cause__ or found.__context__
    if isinstance(problem, httpcore.ConnectError) and str(problem).startswith("the name "):
        return str(problem)
    return "the connection fails" if isinstance(problem, httpcore.NetworkError) else "it does not answer in HTTP"
