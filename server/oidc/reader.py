"""Reads the provider's configuration and keys over HTTPS: bounded in size and time, and from addresses that were judged."""

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpcore

from common.addresses import networks
from server.accounts.provider import Provider
from server.base.errors import RegistryError
from server.notify.connection import JudgedBackend, NotAllowed, Resolve, cause, resolved
from server.notify.webhookurl import checked_url

from .keyset import DocumentRefused, Key, keys_of, keys_url

STEP_S = 5.0
"""For each step of a request."""
WHOLE_S = 10.0
"""For the configuration and the keys together, from the time that the name is resolved."""
MAX_BYTES = 256 * 1024
"""Of each document."""
CONFIGURATION = "/.well-known/openid-configuration"
LISTED_BY = "--network of 'license-server accounts oidc set'"


class ProviderUnavailable(Exception):
    """The provider does not answer as it should. The text says what is wrong; it quotes nothing that the provider has sent."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads a provider's keys.

    Attributes:
        resolve: returns the addresses of a name.
        monotonic: seconds of a clock that never goes back.
    """

    resolve: Resolve = resolved
    monotonic: Callable[[], float] = time.monotonic

    def keys(self, provider: Provider) -> dict[str, Key]:
        """The provider's keys that count, by their ids.

        Raises:
            ProviderUnavailable: they cannot be read.
        """
        end = self.monotonic() + WHOLE_S
        try:
            context = _context(provider)
            url = keys_url(self._get(provider.issuer.rstrip("/") + CONFIGURATION, provider, context, end), provider.issuer)
            return keys_of(self._get(url, provider, context, end))
        except DocumentRefused as problem:
            raise ProviderUnavailable(str(problem)) from None

    def _get(self, url: str, provider: Provider, context: ssl.SSLContext, end: float) -> bytes:
        try:
            checked_url(url)
        except RegistryError:
            raise ProviderUnavailable("the configuration's 'jwks_uri' is not a plain https URL") from None
        extensions = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), STEP_S)}
        backend = JudgedBackend(networks(provider.networks), self.resolve, lambda: end - self.monotonic(), LISTED_BY)
        headers = [(b"Accept", b"application/json"), (b"Accept-Encoding", b"identity")]
        try:
            with (
                httpcore.ConnectionPool(
                    ssl_context=context, http1=True, http2=False, network_backend=backend, retries=0
                ) as pool,
                pool.stream("GET", url, headers=headers, extensions=extensions) as response,
            ):
                if response.status != 200:
                    raise ProviderUnavailable(f"it answers {response.status}; redirects are not followed")
                return self._body(response, end)
        except NotAllowed as problem:
            raise ProviderUnavailable(str(problem)) from None
        except httpcore.TimeoutException:
            raise ProviderUnavailable(f"no whole answer within {WHOLE_S:.0f} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as problem:
            raise ProviderUnavailable(cause(problem)) from None

    def _body(self, response: httpcore.Response, end: float) -> bytes:
        data = b""
        for chunk in response.iter_stream():
            data += chunk
            if len(data) > MAX_BYTES:
                raise ProviderUnavailable(f"a document has more than {MAX_BYTES // 1024} KiB")
            if self.monotonic() > end:
                raise ProviderUnavailable(f"no whole answer within {WHOLE_S:.0f} s")
        return data


def _context(provider: Provider) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=provider.ca)
    except (ssl.SSLError, ValueError):
        raise ProviderUnavailable("the file of its CAs has no certificates in PEM") from None
