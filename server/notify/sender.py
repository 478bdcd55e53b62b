"""Sends one webhook request over HTTPS. The connection goes to an address that was judged, and nowhere else.

No proxy of the environment is used and no redirect is followed: either would lead past the judgment.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import httpcore

from .addresses import Network, allowed, checked_url
from .retries import Attempt

TIMEOUT_S = 10.0
"""For each step of a request."""
WHOLE_S = 20.0
"""For the whole request."""
MAX_REPLY_BYTES = 64 * 1024
"""Of the reply's body; it is read and thrown away."""
Resolve = Callable[[str, int], Sequence[str]]


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system's resolver."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class _NotAllowed(httpcore.ConnectError):
    pass


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


class _JudgedBackend(httpcore.NetworkBackend):
    """Connects to the first address of a name that answers, if all of them are allowed."""

    def __init__(self, listed: Sequence[Network], resolve: Resolve, left: Callable[[], float]) -> None:
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
                raise _NotAllowed(
                    f"{host} has the address {address}, which is not public; see 'webhook_networks' of settings.toml"
                )
        failure: Exception = httpcore.ConnectError(f"the name {host} has no address")
        for address in addresses[:4]:
            try:
                stream = self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
                return _Bounded(stream, self._left)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as problem:
                failure = problem
        raise failure

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise httpcore.ConnectError("webhooks use no Unix sockets")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Sender:
    """Sends requests.

    Args:
        listed: networks that are allowed although they are not public.
        context: verifies receivers; None for the system's CAs.
        resolve: returns the addresses of a name.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        listed: Sequence[Network],
        context: ssl.SSLContext | None = None,
        resolve: Resolve = resolved,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listed = listed
        self._resolve = resolve
        self._context = ssl.create_default_context() if context is None else context
        self._monotonic = monotonic

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Attempt:
        """Posts a body; raises nothing that the network brings about.

        Args:
            url: of the receiver; checked when the webhook was made.
            headers: besides those of HTTP itself.
            body: JSON.
        """
        checked_url(url)
        extensions = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT_S)}
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        end = self._monotonic() + WHOLE_S
        backend = _JudgedBackend(self._listed, self._resolve, lambda: end - self._monotonic())
        try:
            with (
                httpcore.ConnectionPool(
                    ssl_context=self._context, http1=True, http2=False, network_backend=backend, retries=0
                ) as pool,
                pool.stream("POST", url, headers=sent, content=body, extensions=extensions) as response,
            ):
                self._drain(response.iter_stream(), end)
                return _attempt(response.status, dict(response.headers))
        except _NotAllowed as problem:
            return Attempt(None, str(problem))
        except httpcore.TimeoutException:
            return Attempt(None, f"no whole answer within {WHOLE_S:.0f} s")
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as problem:
            return Attempt(None, _cause(problem))

    def _drain(self, chunks: Iterable[bytes], end: float) -> None:
        size = 0
        for chunk in chunks:
            size += len(chunk)
            if size > MAX_REPLY_BYTES or self._monotonic() > end:
                return


def _attempt(status: int, headers: Mapping[bytes, bytes]) -> Attempt:
    if 200 <= status < 300:
        return Attempt(status)
    if 300 <= status < 400:
        return Attempt(status, f"it answers {status}, a redirect: give the webhook the address that it leads to")
    asked = next((value for name, value in headers.items() if name.lower() == b"retry-after"), b"").decode("latin-1")
    wait = int(asked) if asked.isascii() and asked.isdigit() and len(asked) <= 9 else None
    return Attempt(status, f"it answers {status}", wait)


def _cause(problem: BaseException) -> str:
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
