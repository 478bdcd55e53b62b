"""Contacts with the license server: when, and what is done then. One at a time.

A contact asks what is new, and does what follows from the answer: the key set, the revocation list, a rotation, a certificate.
What fails is tried again after a growing pause; nothing of it holds up a verdict.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from agentd.audit.log import AuditLog, AuditUnavailable
from agentd.base.clock import Clock
from agentd.licenses.revocations import Revocations
from agentd.licenses.validator import Engine, EngineRefused
from agentd.rotation.runner import Rotor
from agentd.rotation.table import Rotation, Step
from agentd.secrets.lifecycle import valid_until
from agentd.telemetry.metrics import Counters
from agentd.uplink.client import Exchange, NoContact, NotTheServer
from agentd.uplink.retry import CircuitBreaker, delay
from agentd.uplink.schedule import FIRST_CONTACT_S, contact_delay, rotation_time, share
from agentd.uplink.server_record import Binding
from contracts.exchange import (
    Cause,
    Refused,
    RevocationList,
    RevocationReply,
    SecretStatus,
    StatusReply,
)
from contracts.jose import BadSignature, MalformedToken
from contracts.keyset import verify_key_set
from hwsec.errors import HwsecError

from .updates import ServerWord

log = logging.getLogger(__name__)


LONGEST_PAUSE_S = 3600.0
"""However much later the server would like to be asked again after a refusal."""


class Certificates(Protocol):
    """The TLS key of the agent and its certificate, as contacts see them."""

    @property
    def ends(self) -> int:
        """End of the certificate in use, seconds since 1970 UTC."""
        ...

    def connected(self) -> AbstractAsyncContextManager[None]:
        """A connection to the server for the length of the block; NoContact if there is none to be had."""
        ...

    async def renew_if_due(self, exchange: Exchange) -> None:
        """Gets a new certificate, if it is time. Raises as `Exchange.ask`."""
        ...

    async def renew(self, exchange: Exchange) -> None:
        """Gets a new certificate. Raises as `Exchange.ask`."""
        ...


@dataclass(slots=True)
class Record:
    """What is remembered of contacts in this run. Times are seconds since 1970 UTC.

    Attributes:
        failures: contacts that failed in a row.
        last: the last contact that succeeded; None before the first.
        problem: why the last one failed; None after one that succeeded.
        refused: the server refuses this agent; its words.
    """

    failures: int = 0
    last: int | None = None
    problem: str | None = None
    refused: str | None = None


FAILURES = (NoContact, Refused, HwsecError, AuditUnavailable, EngineRefused, OSError)
"""What a contact may end with; none of it changes a verdict."""


class Contacts:
    """Keeps in touch with the server.

    Args:
        agent_id: who this is.
        exchange: asks.
        certificates: how the server is reached.
        rotor: rotates.
        engine: judges by it.
        word: takes over what else the server says.
        audit: logs.
        clock: wall and monotonic time.
        counters: of this run.
        sealed_audit: number and digest of the last sealed audit record; None before the first.
        heard: called after each contact that succeeded.
        draw: random numbers between 0 and 1, for pauses.
    """

    def __init__(
        self,
        agent_id: str,
        exchange: Exchange,
        certificates: Certificates,
        rotor: Rotor,
        engine: Engine,
        word: ServerWord,
        audit: AuditLog,
        clock: Clock,
        counters: Counters,
        sealed_audit: Callable[[], tuple[int, str] | None],
        heard: Callable[[], Awaitable[None]],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._agent_id = agent_id
        self._exchange = exchange
        self._certificates = certificates
        self._rotor = rotor
        self._engine = engine
        self._word = word
        self._audit = audit
        self._clock = clock
        self._counters = counters
        self._sealed_audit = sealed_audit
        self._heard = heard
        self._draw = draw
        self._lock = asyncio.Lock()
        self._breaker = CircuitBreaker()
        self._count = 0
        self._wanted_s: float = FIRST_CONTACT_S * share(agent_id, "first", clock.floor)
        self._since = clock.monotonic()
        self.record = Record()
        self.held = False

    @property
    def newest(self) -> int:
        """Number of the newest secret version; 0 before the first."""
        return self._rotor.newest

    @property
    def rotation(self) -> Rotation:
        """Where the rotation stands."""
        return self._rotor.rotation

    @property
    def binding(self) -> Binding:
        """The server."""
        return self._word.binding

    @property
    def revocations(self) -> Revocations:
        """Which licenses are revoked."""
        return self._engine.revocations

    @property
    def certificate_ends(self) -> int:
        """End of the TLS certificate in use, seconds since 1970 UTC."""
        return self._certificates.ends

    # When

    def wait_s(self) -> float:
        """Seconds until the next contact; not above zero if it is due."""
        now = self._clock.monotonic()
        left = self._since + self._wanted_s - now
        if not self.record.failures:
            left = min(left, self._rotation_due() - self._clock.now())
        return left

    def _rotation_due(self) -> float:
        """When a rotation should begin; now while one is under way or there is no secret yet."""
        newest = self._engine.newest
        if newest is None or self._rotor.rotation.step is not Step.IDLE:
            return 0
        meta = newest.meta
        return rotation_time(self._agent_id, meta.version, meta.valid_from, valid_until(meta, self._engine.limits))

    def rotation_is_due(self) -> bool:
        """Whether a rotation should be begun now."""
        return self._clock.now() >= self._rotation_due()

    async def tick(self) -> None:
        """Contacts the server if it is time; called often. Never raises what a contact ends with."""
        if self.held or self._lock.locked() or self.wait_s() > 0:
            return
        if not self._breaker.permits(self._clock.monotonic()):
            return
        try:
            await self.contact()
        except FAILURES as error:
            log.warning("no contact with the license server: %s", error)

    # What

    async def contact(self, cause: Cause | None = None, *, renew: bool = False) -> None:
        """One contact, now.

        Args:
            cause: rotate in any case, for this reason; None rotates if it is due or the server wants it.
            renew: get a new TLS certificate in any case.

        Raises:
            NoContact, Refused, HwsecError, AuditUnavailable, EngineRefused, OSError: why it did not come to its end.
        """
        async with self._lock:
            self._count += 1
            self._counters.contacts += 1
            try:
                async with self._certificates.connected():
                    await self._talk(cause, renew)
            except FAILURES as error:
                self._failed(error)
                raise
            self._succeeded()
        await self._heard()

    async def _talk(self, cause: Cause | None, renew: bool) -> None:
        try:
            reply = await self._ask_status()
        except NotTheServer:
            # It may be the server after all, with a key that is newer than the agent's key set: the root's word decides.
            await self._fetch_key_set()
            reply = await self._ask_status()
        if reply.key_set > self._word.binding.key_set:
            await self._fetch_key_set()
        lists = self._engine.revocations
        if reply.revocations != lists.number or lists.next_update is None or self._revocations_are_old():
            await self._fetch_revocations()
        self._rotor.hear(reply.secret_version)
        if cause is None and reply.rotate_now:
            cause = Cause.URGENT
        if cause is None and self.rotation_is_due():
            cause = Cause.DUE
        if cause is not None:
            self._rotor.want(cause)
        if self._rotor.rotation.step is not Step.IDLE:
            await self._rotor.run()
        await (self._certificates.renew if renew else self._certificates.renew_if_due)(self._exchange)
        self._wanted_s = contact_delay(self._agent_id, self._count, reply.next_contact_s)

    async def _ask_status(self) -> StatusReply:
        sealed = self._sealed_audit()
        began = self._clock.monotonic()
        reply = await self._exchange.ask(
            StatusReply,
            SecretStatus,
            current_secret_version=self._rotor.newest,
            key_check=self._rotor.newest_check(),
            highest_version=self._rotor.newest,
            serial=self._word.binding.serial,
            audit_seq=None if sealed is None else sealed[0],
            audit_head=None if sealed is None else sealed[1],
        )
        await self._word.hear_time(reply.issued_at, self._clock.monotonic() - began)
        return reply

    async def _fetch_key_set(self) -> None:
        problem: Exception | None = None
        # A root that this agent does not know yet may have signed the newest one; one that it knows says so in an older one.
        for root in (None, *self._word.binding.roots, None):
            binding = self._word.binding
            text = await self._exchange.fetch_key_set(root)
            try:
                found = verify_key_set(text, binding.roots, above=binding.key_set)
            except (MalformedToken, BadSignature) as error:
                problem = problem or error
                continue
            await self._word.take_key_set(found)
            if root is None:
                return
            problem = None
        if problem is not None:
            raise NotTheServer(f"the key set is not the server's: {problem}")

    def _revocations_are_old(self) -> bool:
        until = self._engine.revocations.next_update
        return until is not None and self._clock.now() >= until - (until - self._engine.revocations.issued_at) // 2

    async def _fetch_revocations(self) -> None:
        reply = await self._exchange.ask(RevocationReply, RevocationList)
        await self._word.take_revocations(reply)

    # How it ended

    def _failed(self, error: BaseException) -> None:
        now = self._clock.monotonic()
        self.record.failures += 1
        self.record.problem = str(error)[:300]
        self._counters.contacts_failed += 1
        retry_after: float | None = None
        if isinstance(error, Refused):
            self.record.refused = str(error)[:300]
            # Signed, but a day without a contact helps nobody: there may be something else to learn.
            retry_after = min(error.refusal.retry_after_s or 0, LONGEST_PAUSE_S)
            self._breaker.succeeded()
        elif isinstance(error, NoContact):
            retry_after = error.retry_after_s
            self._breaker.failed(now, retry_after or 0.0)
        outcome = "refused" if isinstance(error, Refused) else "not_the_server" if isinstance(error, NotTheServer) else "failed"
        if self.record.failures == 1 or outcome != "failed":
            self._audit.record("server.contact", outcome, text=str(error)[:300], failures=self.record.failures)
        self._since = now
        self._wanted_s = max(delay(self.record.failures, self._draw()), retry_after or 0.0)

    def _succeeded(self) -> None:
        if self.record.failures or self.record.last is None:
            self._audit.record("server.contact", "ok", failures=self.record.failures)
        self._breaker.succeeded()
        self.record = Record(0, self._clock.now())
        self._since = self._clock.monotonic()
