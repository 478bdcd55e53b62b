"""Sends one webhook request over HTTPS. The connection goes to an address that was judged, and nowhere else.

No proxy of the environment is used and no redirect is followed: either would lead past the judgment.
"""

import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import httpcore

from common.addresses import Network
from common.redelivery import Attempt

from .connection import JudgedBackend, NotAllowed, Resolve, cause, resolved
from .webhookurl import checked_url

TIMEOUT_S = 10.0
"""For each step of a request."""
WHOLE_S = 20.0
"""For the whole request."""
MAX_REPLY_BYTES = 64 * 1024
"""Of the reply's body; it is read and thrown away."""
LISTED_BY = "'webhook_networks' of settings.toml"


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
        backend = JudgedBackend(self._listed, self._resolve, lambda: end - self._monotonic(), LISTED_BY)
        try:
            with (
                httpcore.ConnectionPool(
                    ssl_context=self._context, http1=True, http2=False, network_backend=backend, retries=0
                ) as pool,
                pool.stream("POST", url, headers=sent, content=body, extensions=extensions) as response,
            ):
                self._drain(response.iter_stream(), end)
                return _attempt(response.status, dict(response.headers))
        except NotAllowed as problem:
            return Attempt(None, str(problem))
        except httpcore.TimeoutException:
            return Attempt(None, f"no whole answer within {WHOLE_S:.0f} s")
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as problem:
            return Attempt(None, cause(problem))

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
