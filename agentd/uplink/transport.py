"""Takes requests to the server through the link. The link is not trusted: it may lose, delay or make up whatever it brings."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Literal

from agentd.base.clock import Clock
from ipc.linkmessages import Provisioning

from .client import Answer, NoContact
from .linkclient import FetchFailed, LinkClient, LinkSession, LinkUnavailable
from .retry import retry_after

UpstreamName = Literal["server", "enrollment"]
REPLY_BYTES = 2 * 1024 * 1024
TIMEOUT_S = 30.0


class Carrier:
    """Requests by way of one connection to the link at a time.

    Args:
        link: the link.
        upstream: the name under which the link knows the server.
        url: where it is, and
        pins: tells by what it is known, for a link whose own configuration does not name it.
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
            NoContact: there is no link.
        """
        provisioning = Provisioning(self._upstream, self._url, self._pins())
        try:
            async with self._link.session(self._clock.now(), certificates, key, provisioning) as session:
                self._session = session
                yield
        except LinkUnavailable as error:
            raise NoContact(f"the link does not work: {error}") from None
        except FetchFailed as error:
            raise NoContact(f"the link refuses: {error}") from None
        finally:
            self._session = None

    async def __call__(self, method: str, path: str, body: bytes) -> Answer:
        """The answer to a request.

        Raises:
            NoContact: there was none.
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
        said = reply.headers.get("retry-after")
        return Answer(reply.status, reply.body, None if said is None else retry_after(said, self._clock.now()))
