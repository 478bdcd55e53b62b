"""Identifies the sender of a request: from the TLS connection, or from what a proxy has written into the headers."""

import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

import anyio.to_thread
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .clientchain import UNREADABLE, ClientChain
from .peers import Peer, certificate_of_header, peer_of
from .transport import PEER_EXTENSION

CERTIFICATE_HEADER = b"client-certificate"
ADDRESS_HEADER = b"client-address"
LOOK_AGAIN_S = 1.0
"""How old our CAs may be before they are asked for again."""
KEPT_PEERS = 1024
"""Certificates that are verified once for all their requests."""

Scope = dict[str, Any]
Identify = Callable[[Scope], Awaitable[tuple[Peer | None, str]]]
"""Returns the certificate that counts, or None, and the address; raises `NotOurs`, `CannotIdentify` or ValueError."""


class CannotIdentify(Exception):
    """Our CAs cannot be read at present, so no certificate can be verified, and none counts."""


async def from_tls(scope: Scope) -> tuple[Peer | None, str]:
    """Peer and address on the TLS listener: from the connection, never from a header."""
    client = scope.get("client")
    return scope.get("extensions", {}).get(PEER_EXTENSION), "" if client is None else str(client[0])


def address_of(scope: Scope) -> str:
    """The address of a sender that could not be identified; empty if unknown. A proxy's header counts on a Unix socket only."""
    client, server = scope.get("client"), scope.get("server")
    if client is not None:
        return str(client[0])
    if server is None or server[1] is not None:
        return ""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == ADDRESS_HEADER), "")


class FromProxy:
    """Peer and address behind nginx: from the headers that nginx overwrites, on a Unix socket only.

    nginx has verified the certificate. It is verified here again, because others may be able to open the socket.

    Args:
        authorities: returns our CAs in PEM; called in a worker thread, raises `CannotIdentify`.
        wall: seconds since 1970 UTC.
        steady: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        authorities: Callable[[], str],
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authorities = authorities
        self._wall = wall
        self._steady = steady
        self._looked: float | None = None
        self._pem = ""
        self._verified: Callable[[bytes], Peer] = self._verifier("")

    async def __call__(self, scope: Scope) -> tuple[Peer | None, str]:
        """As `Identify`.

        Raises:
            ValueError: the connection is not from a Unix socket, a header is there twice, or contains no certificate.
            NotOurs: none of our CAs has issued the certificate.
            CannotIdentify: our CAs cannot be read.
        """
        server = scope.get("server")
        if server is None or server[1] is not None or scope.get("client") is not None:
            raise ValueError("headers of a proxy are accepted on the Unix socket only")
        found: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in (CERTIFICATE_HEADER, ADDRESS_HEADER):
                if name in found:
                    raise ValueError("a header of the proxy is there twice")
                found[name] = value
        certificate = found.get(CERTIFICATE_HEADER)
        address = found.get(ADDRESS_HEADER, b"").decode("latin-1")
        if not certificate:
            return None, address
        await self._refresh()
        return self._verified(certificate), address

    async def _refresh(self) -> None:
        now = self._steady()
        if self._looked is not None and now - self._looked < LOOK_AGAIN_S:
            return
        # They may be in a database: the event loop must not wait for it.
        pem = await anyio.to_thread.run_sync(self._authorities)
        self._looked = now
        if pem != self._pem:
            self._pem, self._verified = pem, self._verifier(pem)

    def _verifier(self, pem: str) -> Callable[[bytes], Peer]:
        """What was verified against other CAs does not count any more: each set of CAs has a cache of its own."""
        chain = ClientChain(pem) if pem else None

        @lru_cache(maxsize=KEPT_PEERS)
        def verified(header: bytes) -> Peer:
            if chain is None:
                raise CannotIdentify
            try:
                certificate = x509.load_pem_x509_certificate(certificate_of_header(header))
                peer = peer_of(certificate.public_bytes(Encoding.DER))
            except UNREADABLE as problem:
                raise ValueError(f"it is not a certificate: {problem}") from None
            chain.require(certificate, int(self._wall()))
            return peer

        return verified
