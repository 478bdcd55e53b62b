"""Connects to the server with the agent's TLS key, and has its certificate renewed before it ends.

A new pair of key and certificate is committed beside the old one and tried at the next contact. It takes the old one's place
once it has worked; where it does not and the old one does, it is given up, and another one is asked for later.
"""

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from agentd.audit.log import AuditLog
from agentd.base.clock import Clock
from agentd.base.hardware import Line
from agentd.secrets.installer import SECTION_TLS, SecretOps
from contracts.exchange import RenewCertificate, RenewReply
from hwsec.errors import BlobCorrupt, StoreCorrupt
from hwsec.sealedblob import open_blob, seal_blob
from hwsec.secretmem import SecretBuffer
from hwsec.vault import Vault, WrappedSecret

from . import tlskey
from .client import API, Exchange, NoContact, NotTheServer
from .schedule import renewal_time
from .tlskey import BadCertificate, ClientKey, StoredKey, StoredKeys, check_certificate, client_key, key_pem, new_key
from .transport import Carrier

log = logging.getLogger(__name__)

BLOB_NAME = "tls-client-key"
RENEW_AGAIN_S = 3600.0
"""After a new certificate that did not work."""


class TlsKeys:
    """The agent's TLS keys at work. Keeps `contacts.Certificates`.

    Args:
        agent_id: who this is.
        stored: as the sealed store has them.
        current: the pair in use.
        following: the pair that has not worked yet, if there is one.
        carrier: connects.
        ops: commits.
        vault: opens keys.
        audit: logs.
        clock: says when a renewal is due.
    """

    def __init__(
        self,
        agent_id: str,
        stored: StoredKeys,
        current: ClientKey,
        following: ClientKey | None,
        carrier: Carrier,
        ops: SecretOps,
        vault: Vault,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self._agent_id = agent_id
        self._stored = stored
        self.current = current
        self.following = following
        self._carrier = carrier
        self._ops = ops
        self._vault = vault
        self._audit = audit
        self._clock = clock
        self._not_before_mono = 0.0

    @property
    def ends(self) -> int:
        """End of the certificate in use, seconds since 1970 UTC."""
        return self.current.not_after

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """A connection for the length of the block: with the new pair if it works, else with the one in use."""
        async with contextlib.AsyncExitStack() as stack:
            if self.following is not None and await self._works(stack, self.following):
                await self._promote()
            else:
                failed = self.following is not None
                await stack.enter_async_context(self._open(self.current))
                if failed:
                    await self._give_up_if_ours_works()
            yield

    @contextlib.asynccontextmanager
    async def _open(self, key: ClientKey) -> AsyncIterator[None]:
        with key_pem(self._vault, key.scalar) as pem:
            opening = self._carrier.open("".join(key.certificates), pem)
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
            return (await self._carrier("POST", f"{API}/challenge", b"{}")).status == 200
        except NoContact:
            return False

    async def _promote(self) -> None:
        if self.following is None or self._stored.following is None:
            raise RuntimeError("there is no new certificate to go by")
        stored = StoredKeys(current=self._stored.following)
        await self._ops.keep({SECTION_TLS: tlskey.encode(stored)}, "tls.renewed", serial=f"{self.following.serial:x}")
        self._stored, self.current, self.following = stored, self.following, None
        log.info("the new TLS certificate works; it is used until %d", self.current.not_after)

    async def _give_up_if_ours_works(self) -> None:
        if self.following is None or not await self._answered():
            return  # the server is out of reach; that says nothing of the new certificate
        stored = StoredKeys(current=self._stored.current)
        serial = f"{self.following.serial:x}"
        log.error("the new TLS certificate %s does not work; the old one is used on, and another one asked for", serial)
        await self._ops.keep({SECTION_TLS: tlskey.encode(stored)}, "tls.renewal_failed", serial=serial)
        self._stored, self.following = stored, None
        self._not_before_mono = self._clock.monotonic() + RENEW_AGAIN_S

    def renewal_due(self) -> bool:
        """Whether a new certificate should be asked for now."""
        key = self.current
        due = renewal_time(self._agent_id, key.serial & 0xFFFFFFFF, key.not_before, key.not_after)
        waited = self._clock.monotonic() >= self._not_before_mono
        return self.following is None and self._clock.now() >= due and waited

    async def renew_if_due(self, exchange: Exchange) -> None:
        """Gets a certificate for a new key, if it is time; it is used from the next contact on."""
        if self.renewal_due():
            await self.renew(exchange)

    async def renew(self, exchange: Exchange) -> None:
        """Gets a certificate for a new key. Raises as `Exchange.ask` and `SecretOps.keep`."""
        scalar, csr = new_key(self._agent_id, self._vault)
        reply = await exchange.ask(RenewReply, RenewCertificate, csr=csr)
        try:
            check_certificate(reply.certificates[0], csr)
            key = client_key(reply.certificates, scalar)
        except BadCertificate as error:
            raise NotTheServer(str(error)) from None
        following = StoredKey(certificates=key.certificates, sealed=await self._ops.on_hardware(self._sealing(scalar)))
        stored = StoredKeys(current=self._stored.current, following=following)
        await self._ops.keep({SECTION_TLS: tlskey.encode(stored)}, "tls.renewal", serial=f"{key.serial:x}", until=key.not_after)
        self._stored, self.following = stored, key

    def _sealing(self, scalar: WrappedSecret) -> "_Seal":
        return _Seal(self._vault, scalar)


@dataclass(frozen=True, slots=True)
class LoadedKeys:
    """The TLS keys of the store, as stored and ready for use."""

    stored: StoredKeys
    current: ClientKey
    following: ClientKey | None


class _Seal:
    """Seals a TLS key on the hardware's thread."""

    def __init__(self, vault: Vault, scalar: WrappedSecret) -> None:
        self._vault = vault
        self._scalar = scalar

    def __call__(self, line: Line) -> bytes:
        with line.backend.kek() as kek, self._vault.open(self._scalar) as scalar:
            return seal_blob(kek, BLOB_NAME, scalar.view)


def unseal_key(kek: SecretBuffer, vault: Vault, stored: StoredKey) -> ClientKey:
    """A stored key, ready for use.

    Args:
        kek: of this machine.
        vault: where the key is to rest.
        stored: from the store.

    Raises:
        StoreCorrupt: it does not open, or its certificate is none.
    """
    try:
        with open_blob(kek, BLOB_NAME, stored.sealed) as scalar:
            return client_key(stored.certificates, vault.wrap(scalar))
    except (BlobCorrupt, ValueError, BadCertificate) as error:
        raise StoreCorrupt(f"the store holds no usable TLS key ({error}); provision this agent anew") from None
