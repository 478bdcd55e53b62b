"""Sends alerts to the webhook: a POST to one fixed address, over connections that go to judged IP addresses and nowhere else.

The status of the answer is all that counts. Its body is not read, so a receiver cannot feed the link or the core.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

import httpx

from common.addresses import Network, allowed
from ipc.linkmessages import End, FailCode, Fetch, Head

from .upstreams import STEP_TIMEOUT, FetchError, Give, UpstreamClient, handed_on, sent_headers

MOST_ADDRESSES = 4
"""Addresses of a name that are tried."""
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolved(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


async def judged(host: str, port: int, listed: Sequence[Network], resolve: Resolve = resolved) -> Sequence[str]:
    """The addresses of a host, all of which a connection may go to.

    Args:
        host: a DNS name or an IP address.
        port: of TCP.
        listed: networks that are allowed although they are not public.
        resolve: returns the addresses of a name.

    Raises:
        FetchError: one of them is neither public nor listed, or there is none.
    """
    try:
        addresses = await resolve(host, port)
    except OSError as error:
        raise FetchError(FailCode.UNREACHABLE, f"the name {host} cannot be resolved: {error.strerror or error}") from None
    for address in addresses:
        if not allowed(address, listed):
            text = f"{host} has the address {address}, which is not public; list its network in 'allow_addresses' of link.toml"
            raise FetchError(FailCode.NOT_ALLOWED, text)
    if not addresses:
        raise FetchError(FailCode.UNREACHABLE, f"the name {host} has no address")
    return addresses[:MOST_ADDRESSES]


class WebhookClient(UpstreamClient):
    """Speaks to the webhook. Arguments as for `UpstreamClient`."""

    async def _exchange(self, fetch: Fetch, give: Give) -> int:
        if fetch.method != "POST" or fetch.path != "/":
            raise FetchError(FailCode.NOT_ALLOWED, "the webhook takes a POST to the one path of link.toml, asked for as '/'")
        response = await self._post(fetch)
        try:
            if 300 <= response.status_code < 400:
                text = f"the server answered {response.status_code}, a redirect; put the address that it leads to in link.toml"
                raise FetchError(FailCode.REDIRECT, text)
            if not 200 <= response.status_code <= 599:
                raise FetchError(FailCode.BAD_RESPONSE, f"the server answered {response.status_code}")
            await give(Head(v=fetch.v, id=fetch.id, status=response.status_code, headers=handed_on(response.headers)))
            await give(End(v=fetch.v, id=fetch.id, size=0))
            return response.status_code
        finally:
            await response.aclose()  # with its connection, since the body was not read

    async def _post(self, fetch: Fetch) -> httpx.Response:
        base = self._base
        host = base.host
        if self._config.proxy is not None:
            # The proxy's name is root's word too, and where a tunnel leads is for the proxy to decide.
            return await self._ask(fetch, base)
        addresses = await judged(host, base.port or 443, self._config.listed)
        for address in addresses[:-1]:
            try:
                return await self._ask(fetch, base.copy_with(host=address))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._ask(fetch, base.copy_with(host=addresses[-1]))

    async def _ask(self, fetch: Fetch, where: httpx.URL) -> httpx.Response:
        request = httpx.Request(
            "POST",
            where,
            headers=[("host", self._base.netloc.decode("ascii")), *sent_headers(fetch)],
            content=fetch.body,
            # The certificate is judged for the name, whatever address the connection goes to.
            extensions={"timeout": STEP_TIMEOUT.as_dict(), "sni_hostname": self._base.host},
        )
        return await self._transport.handle_async_request(request)
