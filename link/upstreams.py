"""Fetches over HTTP/1.1 inside judged TLS. Passes the server's answer on as messages, and gives every failure a code.

httpx is used by its transport: it knows no cookies, redirects, authentication, environment or decoding.
"""

import asyncio
import contextlib
import encodings.idna  # noqa: F401
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import anyio
import certifi  # noqa: F401
import httpcore  # noqa: F401
import httpx

from ipc.byteranges import parse_range, range_problem
from ipc.linkmessages import ANSWER_HEADERS, CHUNK_BYTES, MAX_ANSWER_HEADER_CHARS, Chunk, End, FailCode, Fetch, Head
from ipc.messages import Request

from .causes import causes, connecting_took, network_text, tls_text
from .config import UpstreamConfig
from .pins import PeerRefused, judge
from .tls import JudgingContext

CONNECT_TIMEOUT_S, READ_TIMEOUT_S, WRITE_TIMEOUT_S = 10.0, 30.0, 30.0
"""For one step each; the fetch's own deadline holds besides."""
STEP_TIMEOUT = httpx.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S, write=WRITE_TIMEOUT_S, pool=CONNECT_TIMEOUT_S)
_LIMITS = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=30)
_BODILESS = frozenset({204, 304})

try:
    _AGENT = f"license-agent-link/{version('license-agent')}"
except PackageNotFoundError:
    _AGENT = "license-agent-link"

Give = Callable[[Request], Awaitable[None]]
"""Takes a message for the core; returns when the kernel has taken it, which is what holds a fast server back."""


class CoreGone(Exception):
    """The core has closed its connection, or takes nothing."""


class FetchError(Exception):
    """A fetch failed.

    Attributes:
        code: sent to the core.
        text: the same for people; what a server put into it is printable ASCII.
    """

    def __init__(self, code: FailCode, text: str) -> None:
        self.text = _printable(text)
        super().__init__(self.text)
        self.code = code


async def load_libraries() -> None:
    """Imports what the libraries import at their first use, when an upgrade may have replaced their files already."""
    await anyio.sleep(0)


class UpstreamClient:
    """Speaks to one upstream for the length of a session, over one connection at a time.

    Args:
        config: the destination.
        between: the earliest and the latest time that it may be, in seconds since 1970 UTC; the latter is None without a bound.

    Attributes:
        context: every connection's TLS; takes the client certificate.
    """

    def __init__(self, config: UpstreamConfig, between: Callable[[], tuple[int, int | None]]) -> None:
        self._config = config
        self._base = httpx.URL(config.url)
        self._proxy = None if config.proxy is None else address(httpx.URL(config.proxy))
        self.context = JudgingContext(lambda chain, host: judge(chain, config.pins, host, *between(), config.roots))
        self._transport = self._connectionless()

    def _connectionless(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(
            verify=self.context, trust_env=False, http1=True, http2=False, limits=_LIMITS, proxy=self._config.proxy
        )

    async def fetch(self, fetch: Fetch, give: Give) -> int:
        """Performs a fetch and hands on head, chunks and end.

        Returns:
            The status.

        Raises:
            FetchError: there is no whole answer.
            CoreGone: raised by `give`.
        """
        before = self.context.accepted
        try:
            async with asyncio.timeout(fetch.timeout_ms / 1000):
                return await self._exchange(fetch, give)
        except (FetchError, CoreGone):
            raise
        except TimeoutError:
            raise FetchError(FailCode.TIMEOUT, f"the answer was not complete within {fetch.timeout_ms} ms") from None
        except Exception as error:  # noqa: BLE001 - sorted below; what has no code goes on as it is
            # A tunnel that was never made is the proxy's doing.
            tunnel = self._config.proxy is not None and before == self.context.accepted
            raise explain(error, address(self._base), self._proxy, proxied=tunnel) from None

    async def reset(self) -> None:
        """Closes the connection, which may be in the middle of an answer; the next fetch makes another."""
        await self.aclose()
        self._transport = self._connectionless()

    async def aclose(self) -> None:
        """Closes the connection."""
        with contextlib.suppress(Exception):  # nothing more is sent or read: how the connection ends changes nothing
            await self._transport.aclose()

    async def _exchange(self, fetch: Fetch, give: Give) -> int:
        path = self._base.raw_path.decode("ascii").rstrip("/") + fetch.path
        request = httpx.Request(
            fetch.method,
            self._base.copy_with(raw_path=path.encode("ascii")),
            headers=sent_headers(fetch),
            content=fetch.body if fetch.method == "POST" else None,
            extensions={"timeout": STEP_TIMEOUT.as_dict()},
        )
        response = await self._transport.handle_async_request(request)
        try:
            reply = partial(_with_id, v=fetch.v, id=fetch.id)
            await give(reply(Head, status=check_head(response, fetch), headers=handed_on(response.headers)))
            size = 0
            async for data in response.aiter_raw():
                size += len(data)
                if size > fetch.max_body:
                    raise FetchError(FailCode.TOO_LARGE, f"the answer has more than {fetch.max_body} bytes")
                for start in range(0, len(data), CHUNK_BYTES):
                    await give(reply(Chunk, data=data[start : start + CHUNK_BYTES]))
            await give(reply(End, size=size))
            return response.status_code
        finally:
            await response.aclose()


def _with_id(kind: Callable[..., Request], **fields: object) -> Request:
    return kind(**fields)


def check_head(response: httpx.Response, fetch: Fetch) -> int:
    """The status of an answer that may be handed on.

    An answer must say where its body ends (RFC 9112 section 6.3): one that ends with the connection could be cut short by
    anyone on the way.

    Raises:
        FetchError: REDIRECT, TOO_LARGE, RANGE or BAD_RESPONSE.
    """
    status, headers = response.status_code, response.headers
    if 300 <= status < 400 and status != 304:
        raise FetchError(FailCode.REDIRECT, f"the server answered {status}, a redirect; the link does not follow redirects")
    if not 200 <= status <= 599:
        raise FetchError(FailCode.BAD_RESPONSE, f"the server answered {status}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchError(FailCode.BAD_RESPONSE, "the server compressed its answer, though the link did not ask for that")
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers and status not in _BODILESS:
        raise FetchError(FailCode.BAD_RESPONSE, "the answer has neither Content-Length nor chunked encoding")
    if 200 <= status < 300 and (problem := _part_problem(status, headers, fetch)):
        raise FetchError(FailCode.RANGE, problem)
    if length is not None and status not in _BODILESS and int(length) > fetch.max_body:
        raise FetchError(FailCode.TOO_LARGE, f"the answer has {int(length)} bytes; at most {fetch.max_body} are accepted")
    return status


def _part_problem(status: int, headers: httpx.Headers, fetch: Fetch) -> str | None:
    """Why a successful answer is not the part that the fetch asks for, or a part that it does not ask for."""
    wanted = parse_range(dict(fetch.headers).get("range", ""))
    if wanted is None:
        return "the server answered with a part of the file, which was not asked for" if status == 206 else None
    length = headers.get("content-length")
    return range_problem(wanted, status, headers.get("content-range"), None if length is None else int(length))


def sent_headers(fetch: Fetch) -> list[tuple[str, str]]:
    """The headers of a request: the link's own, then those that the core asks for."""
    return [("user-agent", _AGENT), ("accept-encoding", "identity"), *fetch.headers]


def handed_on(headers: httpx.Headers) -> tuple[tuple[str, str], ...]:
    """The headers of an answer that the core gets.

    Raises:
        FetchError: one of them is too long, or not printable.
    """
    found = tuple((name, headers[name]) for name in sorted(ANSWER_HEADERS) if name in headers)
    if any(len(value) > MAX_ANSWER_HEADER_CHARS or not (value.isascii() and value.isprintable()) for _, value in found):
        raise FetchError(FailCode.BAD_RESPONSE, "a header of the answer is too long or not printable")
    return found


def address(url: httpx.URL) -> str:
    """Host and port."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{host}:{url.port or (443 if url.scheme == 'https' else 80)}"


def explain(error: Exception, server: str, proxy: str | None = None, *, proxied: bool) -> FetchError:
    """The code of what went wrong, and where and why.

    Args:
        error: from httpx, `ssl` or our judge.
        server: its address.
        proxy: the proxy's address; None without one.
        proxied: the way leads through a proxy, and no handshake with the server was finished.
    """
    there = proxy if proxied and proxy else server
    if isinstance(error, PeerRefused):
        return FetchError(error.code, error.text)
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return FetchError(FailCode.TIMEOUT, f"{there}: {connecting_took(CONNECT_TIMEOUT_S)}")
    if isinstance(error, httpx.TimeoutException):
        seconds = WRITE_TIMEOUT_S if isinstance(error, httpx.WriteTimeout) else READ_TIMEOUT_S
        what = "took no data" if isinstance(error, httpx.WriteTimeout) else "sent no data"
        return FetchError(FailCode.TIMEOUT, f"{there} accepted the connection and {what} for {seconds:g} s")
    if isinstance(error, httpx.ProxyError):
        return FetchError(FailCode.PROXY, f"the proxy refused the tunnel: {_name(error)}")
    for cause in causes(error):
        if isinstance(cause, ssl.SSLError):
            return FetchError(FailCode.TLS, f"TLS with {server} failed: {tls_text(cause)}")
    if proxied and isinstance(error, httpx.TransportError):
        return FetchError(FailCode.PROXY, f"the proxy {there} cannot be used: {network_text(error)}")
    if isinstance(error, httpx.NetworkError | OSError):
        return FetchError(FailCode.UNREACHABLE, f"{there}: {network_text(error)}")
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" in str(error):
        return FetchError(FailCode.BAD_RESPONSE, f"{there} closed the connection before it answered")
    if isinstance(error, httpx.ProtocolError | ValueError):
        return FetchError(FailCode.BAD_RESPONSE, f"the answer of {there} is not HTTP/1.1: {_name(error)}")
    raise error


def _name(error: Exception) -> str:
    return str(error) or type(error).__name__


def _printable(text: str) -> str:
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in text)[:400]
