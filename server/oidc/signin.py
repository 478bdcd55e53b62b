"""Says whose a token of the OpenID provider is, with the provider's keys, which are kept for a while and read again when due.

Whatever the provider does, other ways to sign in go on: one thread of its own reads keys, and few requests wait for it. What
could not be checked is refused, or asked to come again; it is never admitted.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass

from server.accounts.provider import Provider

from .keyset import Key
from .reader import WHOLE_S, ProviderUnavailable, Reader
from .tokens import TokenRefused, Vouched, check_claims, parsed, verified

PAUSE_S = 60.0
"""Seconds between two readings of the keys, at least, whatever tokens come."""
FRESH_S = 900.0
"""Keys that were read longer ago are read again, beside the requests that still use them."""
KEPT_S = 4 * 3600.0
"""Keys that were read longer ago do not count: for so long an unreachable provider keeps nobody out who has a token."""
MOST_WAIT = 4
"""Requests that wait for keys at once. The others get 503."""
_log = logging.getLogger("license_server")


@dataclass(frozen=True, slots=True)
class _Known:
    """Keys, and the time of the clock that never goes back when they were asked for."""

    keys: dict[str, Key]
    at: float


class ProviderSignIn:
    """Verifies tokens of the provider that is in use. Every method may be called by several threads.

    Args:
        reader: reads keys.
        steady: seconds of a clock that never goes back.
    """

    def __init__(self, reader: Reader | None = None, steady: Callable[[], float] = time.monotonic) -> None:
        self._reader = Reader() if reader is None else reader
        self._steady = steady
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MOST_WAIT)
        self._thread = ThreadPoolExecutor(1, "openid-keys")
        self._provider: Provider | None = None
        self._known: _Known | None = None
        self._asked_at: float | None = None
        self._reading: Future[None] | None = None

    def vouched(self, text: str, provider: Provider, now: int) -> Vouched:
        """For whom the provider vouches.

        Args:
            text: the token.
            provider: the one in use, as the registry has it now.
            now: seconds since 1970 UTC.

        Raises:
            TokenRefused: the token does not count.
            ProviderUnavailable: the keys are not known, and cannot be read now.
        """
        token = parsed(text)
        # Also before a key is looked for: nobody makes this server ask the provider for a token that could not count anyway.
        check_claims(token.claims, provider, now)
        return verified(token, self._key(token.kid, provider), provider, now)

    def _key(self, kid: str, provider: Provider) -> Key:
        """The provider's key with this id."""
        known, reading = self._look(kid, provider)
        if known is not None and kid in known.keys:
            return known.keys[kid]
        if reading is not None:
            self._wait(reading)
            known, _ = self._look(kid, provider)
        if known is None:
            raise ProviderUnavailable("the keys of the OpenID provider cannot be read now")
        if kid not in known.keys:
            raise TokenRefused("the provider has no key with the id in its header, or had none a minute ago")
        return known.keys[kid]

    def _look(self, kid: str, provider: Provider) -> "tuple[_Known | None, Future[None] | None]":
        """The keys that count, and the reading that may bring others; begins one if it is due."""
        with self._lock:
            now = self._steady()
            if provider != self._provider:
                self._provider, self._known, self._asked_at, self._reading = provider, None, None, None
            if self._known is not None and now - self._known.at > KEPT_S:
                self._known = None
            stale = self._known is None or kid not in self._known.keys or now - self._known.at > FRESH_S
            if self._reading is not None and self._reading.done():
                self._reading = None
            rested = self._asked_at is None or now - self._asked_at >= PAUSE_S
            if stale and rested and self._reading is None:
                self._asked_at = now
                self._reading = self._thread.submit(self._read, provider, now)
            return self._known, self._reading

    def _wait(self, reading: "Future[None]") -> None:
        if not self._waiting.acquire(blocking=False):
            raise ProviderUnavailable("the keys of the OpenID provider are being read")
        try:
            reading.result(WHOLE_S)
        except TooLate:
            raise ProviderUnavailable("the OpenID provider does not answer") from None
        finally:
            self._waiting.release()

    def _read(self, provider: Provider, began: float) -> None:
        """Reads the keys; runs in the thread of its own. What was known stays if it fails."""
        try:
            keys = self._reader.keys(provider)
        except ProviderUnavailable as problem:
            _log.warning("the keys of the OpenID provider cannot be read", extra={"fields": {"problem": str(problem)[:300]}})
            return
        except Exception as problem:  # noqa: BLE001 - the next reading tries again
            fields = {"kind": type(problem).__name__}
            _log.error("the keys of the OpenID provider cannot be read", extra={"fields": fields})
            return
        with self._lock:
            if provider == self._provider:
                self._known = _Known(keys, began)
