"""Keeps the agent's client certificate working: connects with it, renews it, and goes back where a new one does not work.

A new key and its certificate are kept beside the old pair until they have worked in a contact in which the server's time was
taken: a wrong clock may have dated them. If they fail, the old pair stays in use.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from agentd.audit.core import Core
from agentd.base.hardware import HardwareConnection
from agentd.secrets.record import SealedTlsKey, SealedTlsKeys
from agentd.secrets.store import Store
from agentd.secrets.trusted_time import utc
from contracts.contact.renewal import RenewalPolicy, renewal_time
from hwsec.errors import BlobCorrupt, StoreCorrupt
from hwsec.sealedblob import open_blob, seal_blob
from hwsec.secretmem import SecretBuffer
from hwsec.vault import Vault, WrappedSecret

from .tlskey import BadCertificate, ClientKey, check_certificate, client_key, key_pem, new_key
from .transport import API, NoContact, NotTheServer, Transport

log = logging.getLogger(__name__)

BLOB_NAME = "tls-client-key"
RENEW_AGAIN_S = 3600.0
"""How long the agent waits after a new certificate that did not work."""


@dataclass(frozen=True, slots=True)
class OpenedTlsKeys:
    """The TLS keys of the store, ready for use."""

    current: ClientKey
    pending: ClientKey | None


@dataclass(frozen=True, slots=True)
class Renewal:
    """A new key and the request for its certificate (PKCS #10, PEM)."""

    scalar: WrappedSecret
    csr: str


class ClientCertificates:
    """The agent's TLS keys and certificates at work.

    Args:
        store: commits renewed ones.
        transport: connects with them.
        keys: as opened at the start.
        policy: says how long before its end a certificate is renewed.
    """

    def __init__(
        self,
        core: Core,
        store: Store,
        transport: Transport,
        keys: OpenedTlsKeys,
        policy: Callable[[], RenewalPolicy] = RenewalPolicy,
    ) -> None:
        self._policy = policy
        self._core = core
        self._store = store
        self._transport = transport
        self.current = keys.current
        self.pending = keys.pending
        # Not read from the record at each use: after a commit that was reported as failed and was done all the same, the record
        # may hold other keys than the two above.
        self._kept = store.record.tls
        self._not_before_mono = 0.0
        self._pending_works = False

    @property
    def used(self) -> ClientKey:
        """The pair in use: the new one from the contact on in which it has worked."""
        return self.pending if self.pending is not None and self._pending_works else self.current

    @property
    def ends(self) -> int:
        """End of the certificate in use, seconds since 1970 UTC."""
        return self.used.not_after

    @property
    def _sealed(self) -> SealedTlsKeys:
        if self._kept is None:
            raise RuntimeError("an agent with a server must have a TLS key in its store")
        return self._kept

    async def _keep(self, event: str, sealed: SealedTlsKeys, **fields: Any) -> None:
        await self._store.keep(event, {"tls": sealed}, **fields)
        self._kept = sealed

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """A connection for the length of the block: with the new pair if it works, else with the one in use."""
        async with contextlib.AsyncExitStack() as stack:
            self._pending_works = self.pending is not None and await self._works(stack, self.pending)
            if not self._pending_works:
                await stack.enter_async_context(self._open(self.current))
                if self.pending is not None:
                    await self._drop_pending_if_ours_works()
            yield

    @contextlib.asynccontextmanager
    async def _open(self, key: ClientKey) -> AsyncIterator[None]:
        with key_pem(self._core.vault, key.scalar) as pem:
            opening = self._transport.open("".join(key.certificates), pem)
            await opening.__aenter__()
        try:
            yield
        finally:
            await opening.__aexit__(None, None, None)

    async def _works(self, stack: contextlib.AsyncExitStack, key: ClientKey) -> bool:
        inner = contextlib.AsyncExitStack()
        try:
            await inner.enter_async_context(self._open(key))
            works = await self._answered()
        except NoContact:
            works = False
        if works:
            stack.push_async_exit(inner)
        else:
            await inner.aclose()
        return works

    async def _answered(self) -> bool:
        try:
            return (await self._transport("POST", f"{API}/challenge", b"{}")).status == 200
        except NoContact:
            return False

    async def settle(self) -> None:
        """Gives the old pair up if the new one works; called at the end of a contact in which the server's time was taken.

        Raises:
            HwsecError, AuditUnavailable: nothing has changed.
        """
        sealed = self._sealed.pending
        if self.pending is None or sealed is None or not self._pending_works:
            return
        await self._keep("tls.renewed", SealedTlsKeys(current=sealed), serial=f"{self.pending.serial:x}")
        self.current, self.pending, self._pending_works = self.pending, None, False
        log.info("the new TLS certificate works; it is used until %d", self.current.not_after)

    async def _drop_pending_if_ours_works(self) -> None:
        if self.pending is None or not await self._answered():
            return  # the server is out of reach; that says nothing about the new certificate
        serial = f"{self.pending.serial:x}"
        log.error(
            "the new TLS certificate %s does not work; the old one stays in use, and the agent will ask for another", serial
        )
        await self._keep("tls.renewal_failed", SealedTlsKeys(current=self._sealed.current), serial=serial)
        self.pending = None
        self._not_before_mono = self._core.clock.monotonic() + RENEW_AGAIN_S

    def renewal_due(self, *, settled: bool) -> bool:
        """Whether the agent should ask for a new certificate now.

        Args:
            settled: the server's time is taken, so that a certificate that begins later can be replaced by a right one.
        """
        key, clock = self.used, self._core.clock
        due = renewal_time(self._policy(), self._core.agent_id, key.serial, key.not_before, key.not_after)
        ceiling = clock.ceiling()
        misdated = settled and ceiling is not None and key.not_before > ceiling
        waiting = self.pending is not None and not self._pending_works
        return not waiting and (misdated or clock.now() >= due) and clock.monotonic() >= self._not_before_mono

    def problem(self) -> str:
        """What is wrong with the dates of the certificate in use, as far as the time is known here; empty if nothing is."""
        key, clock = self.used, self._core.clock
        ceiling = clock.ceiling()
        if ceiling is not None and key.not_before > ceiling:
            begin = utc(key.not_before)
            return f"this agent's certificate is not valid before {begin}: the server's clock was wrong when it made it"
        if key.not_after < clock.certain():
            return f"this agent's certificate is not valid after {utc(key.not_after)}"
        return ""

    def new_renewal(self) -> Renewal:
        """A new key, and the request for its certificate that the server is to be asked for."""
        return Renewal(*new_key(self._core.agent_id, self._core.vault))

    async def accept(self, renewal: Renewal, certificates: tuple[str, ...]) -> None:
        """Stores the certificates that the server made for a new key; they are used from the next contact on.

        Raises:
            NotTheServer: they are not for this key.
            HwsecError, AuditUnavailable: they could not be stored; nothing has changed.
        """
        try:
            check_certificate(certificates[0], renewal.csr)
            key = client_key(certificates, renewal.scalar)
        except (BadCertificate, IndexError) as error:
            raise NotTheServer(str(error)) from None
        sealed = await self._store.on_hardware(_Seal(self._core.vault, renewal.scalar))
        pending = SealedTlsKey(certificates=key.certificates, sealed=sealed)
        former = self._sealed
        # A pair that works takes the place of the one before it: one that works always stays beside the new one.
        works = self._pending_works and former.pending is not None
        current = former.pending if works and former.pending is not None else former.current
        tls = SealedTlsKeys(current=current, pending=pending)
        await self._keep("tls.renewal", tls, serial=f"{key.serial:x}", until=key.not_after)
        self.current, self.pending, self._pending_works = self.used, key, False


class _Seal:
    """Seals a TLS key on the hardware's thread."""

    def __init__(self, vault: Vault, scalar: WrappedSecret) -> None:
        self._vault = vault
        self._scalar = scalar

    def __call__(self, connection: HardwareConnection) -> bytes:
        with connection.backend.kek() as kek, self._vault.open(self._scalar) as scalar:
            return seal_blob(kek, BLOB_NAME, scalar.view)


def open_tls_keys(kek: SecretBuffer, vault: Vault, sealed: SealedTlsKeys) -> OpenedTlsKeys:
    """The TLS keys of a store, ready for use.

    Args:
        kek: of this machine.
        vault: keeps the keys in memory.
        sealed: from the store.

    Raises:
        StoreCorrupt: a key does not open, or its certificate cannot be read.
    """
    pending = None if sealed.pending is None else _opened(kek, vault, sealed.pending)
    return OpenedTlsKeys(_opened(kek, vault, sealed.current), pending)


def _opened(kek: SecretBuffer, vault: Vault, sealed: SealedTlsKey) -> ClientKey:
    try:
        with open_blob(kek, BLOB_NAME, sealed.sealed) as scalar:
            return client_key(sealed.certificates, vault.wrap(scalar))
    except (BlobCorrupt, ValueError, BadCertificate) as error:
        raise StoreCorrupt(f"the store holds no usable TLS key ({error}); provision this agent again") from None
