"""Carries requests to the license server through the link. The link is not trusted: it may lose, delay or invent anything."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from agentd.base.clock.clock import Clock
from ipc.errors import LocalProtocolError
from ipc.linkmessages import Provisioning

from .linkclient import FetchFailed, LinkClient, LinkSession, LinkUnavailable
from .retry import retry_after

UpstreamName = Literal["server", "enrollment"]
API = "/api/v1"
REPLY_BYTES = 2 * 1024 * 1024
TIMEOUT_S = 30.0


class NoContact(Exception):
    """The agent did not reach the server, or received nothing that counts as its answer. Nothing has changed here.

    Attributes:
        retry_after_s: seconds until the other side asks to be tried again, if it said so. Nobody signs that: it can only delay.
    """

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class NotTheServer(NoContact):
    """The answer does not carry the server's signature for this request."""


class CertificateRefused(NoContact):
    """The server does not let this agent in with its client certificate: HTTP status 401. Nobody signs that."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response of HTTP.

    Attributes:
        status: the HTTP status.
        body: at most `REPLY_BYTES`.
        retry_after_s: seconds that its Retry-After asks for.
    """

    status: int
    body: bytes
    retry_after_s: float | None = None


class Transport(Protocol):
    """One connection at a time to the license server; `LinkTransport` in the daemon, a server in the same process in tests."""

    def open(
        self, certificates: str | None = None, key: bytearray | None = None
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """A connection for the length of the block; raises NoContact."""
        ...

    async def __call__(self, method: str, path: str, body: bytes) -> Response:
        """The response to a request; raises NoContact."""
        ...


class LinkTransport:
    """Requests by way of the link.

    Args:
        link: the link's socket.
        upstream: the name under which the link knows the server.
        url: where the server is, for a link whose own configuration does not name it.
        pins: of the server's keys, likewise.
        clock: certificates are judged by its time.
    """

    def __init__(
        self, link: LinkClient, upstream: UpstreamName, url: str, pins: Callable[[], tuple[str, ...]], clock: Clock
    ) -> None:
        self._link = link
        self._upstream: UpstreamName = upstream
        self._url = url
        self._pins = pins
        self._clock = clock
        self._session: LinkSession | None = None

    @contextlib.asynccontextmanager
    async def open(self, certificates: str | None = None, key: bytearray | None = None) -> AsyncIterator[None]:
        """A connection for the length of the block.

        Args:
            certificates: the client certificate and those between it and the root, PEM; None without one.
            key: its private key, PEM; the caller wipes it.

        Raises:
            NoContact: the link does not answer.
        """
        provisioning = Provisioning(self._upstream, self._url, self._pins())
        clock = self._clock
        try:
            async with self._link.session(clock.certain(), certificates, key, provisioning, latest=clock.ceiling()) as session:
                self._session = session
                yield
        except LinkUnavailable as error:
            raise NoContact(f"the link does not work: {error}") from None
        except FetchFailed as error:
            raise NoContact(f"the link refuses: {error}") from None
        except LocalProtocolError as error:
            raise NoContact(f"the link cannot be asked for this: {error}") from None
        finally:
            self._session = None

    async def __call__(self, method: str, path: str, body: bytes) -> Response:
        """The response to a request.

        Raises:
            NoContact: none came.
        """
        if self._session is None:
            raise NoContact("there is no connection to the link")
        headers = {"content-type": "application/json"} if method == "POST" else {}
        try:
            reply = await self._session.fetch(
                self._upstream, method, path, body=body, headers=headers, max_body=REPLY_BYTES, timeout_s=TIMEOUT_S
            )
        except LinkUnavailable as error:
            raise NoContact(f"the link does not work: {error}") from None
        except FetchFailed as error:
            raise NoContact(f"the server was not reached: {error}") from None
        except LocalProtocolError as error:
            raise NoContact(f"the request cannot be sent: {error}") from None
        value = reply.headers.get("retry-after")
        return Response(reply.status, reply.body, None if value is None else retry_after(value, self._clock.now()))
