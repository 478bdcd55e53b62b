"""Decides when to contact the license server and runs one contact at a time.

A contact asks what is new and does what follows from the answer: key set, revocation list, rotation, certificate. A failed
contact is tried again after a growing pause; no verdict waits for any of it.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from agentd.audit.checkpoint import Checkpoint
from agentd.audit.core import Core
from agentd.audit.log import AuditUnavailable
from agentd.base.errors import Refused
from agentd.rotation.runner import RotationRunner
from agentd.rotation.table import Rotation, Step
from agentd.secrets.record import ServerRecord
from agentd.secrets.revocations import Revocations
from agentd.uplink.certificates import ClientCertificates
from agentd.uplink.client import ExchangeClient
from agentd.uplink.retry import CircuitBreaker, delay
from agentd.uplink.schedule import FIRST_CONTACT_S, contact_delay
from agentd.uplink.transport import CertificateRefused, NoContact, NotTheServer
from contracts.contact.configuration import CONFIGURATION
from contracts.contact.licensesync import SYNC
from contracts.contact.renewal import share
from contracts.contact.seats import LEASE
from contracts.contact.updates import UPDATES
from contracts.contact.usage import REPORT
from contracts.exchange import (
    Cause,
    RefusalCode,
    RenewCertificate,
    RenewReply,
    RevocationList,
    RevocationReply,
    SecretStatus,
    StatusReply,
)
from contracts.exchange import Refused as ServerRefused
from contracts.jose import BadSignature, MalformedToken
from contracts.keyset import verify_key_set
from hwsec.errors import HwsecError

from .capabilities import Negotiation
from .configuration import ConfigurationSync
from .licenses import LicenseSync
from .ota import UpdateSync
from .seats import SeatSync
from .updates import SignedUpdates
from .usage import UsageReports

log = logging.getLogger(__name__)

CONFIRM_SPREAD_S = 600.0
"""The contact that may confirm the server's time comes within so many seconds after it may."""
SEAT_PAUSE_S = 30.0
"""A POS application that waits for a seat brings about a contact at once, but not sooner than so long after the last one."""
OUTCOME_PAUSE_S = 30.0
"""So does an update that has ended: an operator waits for that."""
LONGEST_PAUSE_S = 3600.0
"""The agent never waits longer after a refusal, whatever the server asks for."""

FAILURES = (NoContact, ServerRefused, HwsecError, AuditUnavailable, Refused, OSError)
"""What a contact may end with; none of it changes a verdict."""


@dataclass(slots=True)
class ContactRecord:
    """What the agent remembers of its contacts in this run. Times are seconds since 1970 UTC.

    Attributes:
        failures: contacts that failed in a row.
        last: the last contact that succeeded; None before the first.
        problem: why the last one failed; None after one that succeeded.
        refused: the server's words, if it refuses this agent.
        certificate_unknown: the last one failed because the server does not know this agent's certificate, or any more.
    """

    failures: int = 0
    last: int | None = None
    problem: str | None = None
    refused: str | None = None
    certificate_unknown: bool = False


@dataclass(frozen=True, slots=True)
class Contacted:
    """What a contact did with the secret.

    Attributes:
        before: number of the newest version when it began; 0 if there was none.
        finished: the version of an earlier rotation that had been interrupted, and that it finished first; 0 if there was none.
    """

    before: int
    finished: int


class ContactCycle:
    """Keeps in touch with the license server.

    Args:
        client: asks.
        certificates: connects.
        rotation: rotates the secret.
        updates: applies what else the server says.
        checkpoint: names the last sealed audit record, which the server is to know.
        negotiation: knows what the server can do.
        licenses: keeps the machine's licenses as the server has them.
        seats: keeps its seats of floating licenses.
        usage: reports what was counted.
        configuration: asks for the fleet's configuration.
        ota: asks for directives; None where updates are not enabled.
        draw: random numbers between 0 and 1, for pauses.

    Attributes:
        record: of this run.
        held: an administrator has switched degraded mode on, so no contact starts by itself.
    """

    def __init__(
        self,
        core: Core,
        client: ExchangeClient,
        certificates: ClientCertificates,
        rotation: RotationRunner,
        updates: SignedUpdates,
        checkpoint: Checkpoint,
        negotiation: Negotiation,
        licenses: LicenseSync,
        seats: SeatSync,
        usage: UsageReports,
        configuration: ConfigurationSync,
        ota: UpdateSync | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._core = core
        self._client = client
        self._certificates = certificates
        self._rotation = rotation
        self._updates = updates
        self._checkpoint = checkpoint
        self._negotiation = negotiation
        self._licenses = licenses
        self._seats = seats
        self._usage = usage
        self._configuration = configuration
        self._ota = ota
        self._draw = draw
        self._lock = asyncio.Lock()
        self._breaker = CircuitBreaker()
        self._count = 0
        self._wanted_s: float = FIRST_CONTACT_S * share(core.agent_id, "first", core.clock.floor)
        self._since = core.clock.monotonic()
        self.record = ContactRecord()
        self.held = False

    @property
    def newest(self) -> int:
        """Number of the newest secret version; 0 before the first."""
        return self._rotation.newest

    @property
    def rotation(self) -> Rotation:
        """Where the rotation stands."""
        return self._rotation.rotation

    @property
    def server(self) -> ServerRecord:
        """The license server."""
        return self._updates.server

    @property
    def revocations(self) -> Revocations:
        """Which licenses are revoked."""
        return self._updates.revocations

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the server can do beyond release 0.1.0, as far as this agent uses it."""
        return self._negotiation.known

    @property
    def licenses(self) -> LicenseSync:
        """What the server said of this machine's licenses."""
        return self._licenses

    @property
    def certificate_ends(self) -> int:
        """End of the TLS certificate in use, seconds since 1970 UTC."""
        return self._certificates.ends

    # When

    def wait_s(self) -> float:
        """Seconds until the next contact; zero or less if it is due."""
        left = self._since + self._wanted_s - self._core.clock.monotonic()
        if not self.record.failures:
            left = min(left, self._rotation.due_at() - self._core.clock.now())
            if self._seats.wanted and self.record.last is not None:
                left = min(left, self._since + SEAT_PAUSE_S - self._core.clock.monotonic())
            if self._ota is not None and self._ota.wanted and self._negotiation.can(UPDATES):
                left = min(left, self._since + OUTCOME_PAUSE_S - self._core.clock.monotonic())
        return left

    async def tick(self) -> bool:
        """Contacts the server if it is time; called often. Returns whether a contact succeeded; logs one that failed."""
        if self.held or self._lock.locked() or self.wait_s() > 0:
            return False
        if not self._breaker.permits(self._core.clock.monotonic()):
            return False
        try:
            await self.contact()
        except FAILURES as error:
            log.warning("no contact with the license server: %s", error)
            return False
        return True

    # What

    async def contact(self, cause: Cause | None = None, *, renew: bool = False) -> Contacted:
        """Contacts the server now.

        Args:
            cause: get a new secret in any case, for this reason; None rotates if it is due or the server wants it.
            renew: get a new TLS certificate in any case.

        Raises:
            NoContact, contracts.exchange.Refused, HwsecError, AuditUnavailable, Refused, OSError: why it failed.
        """
        async with self._lock:
            self._count += 1
            self._core.counters.contacts += 1
            self._breaker.try_now()
            began = self._core.clock.monotonic()
            try:
                done = await self._meet(cause, renew)
            except Exception as error:
                # Whatever it was: it is not tried again at each tick.
                self._failed(error)
                raise
            finally:
                self._core.counters.contact_s.observe(self._core.clock.monotonic() - began)
            self._succeeded()
            return done

    async def withdrawn(self, number: int) -> bool:
        """Whether the server takes a directive back; False if it cannot be asked. Raises AuditUnavailable."""
        if self._ota is None or self.held or not self._negotiation.can(UPDATES):
            return False
        try:
            async with self._lock, self._certificates.connected():
                self._client.forget_challenge()
                return await self._ota.withdrawn(number)
        except (NoContact, ServerRefused, HwsecError, OSError) as error:
            log.info("the server could not be asked whether it takes directive %d back: %s", number, error)
            return False

    async def _meet(self, cause: Cause | None, renew: bool) -> Contacted:
        certificates, client = self._certificates, self._client
        async with certificates.connected():
            client.forget_challenge()
            try:
                return await self._talk(cause, renew)
            except CertificateRefused as refused:
                # Without a challenge the server does not know the certificate; with one it has ended, or begins later.
                if not client.has_challenge:
                    raise
                log.warning("the server does not accept this agent's certificate: %s; asking for another", refused)
                await self._renew()
        async with certificates.connected():
            client.forget_challenge()
            return await self._talk(cause, False)

    async def _talk(self, cause: Cause | None, renew: bool) -> Contacted:
        try:
            reply = await self._ask_status()
        except NotTheServer:
            # It may be the server with a key that is newer than the agent's key set: the root's signature decides.
            await self._fetch_key_set()
            reply = await self._ask_status()
        if reply.key_set > self.server.key_set:
            await self._fetch_key_set()
        lists, clock = self.revocations, self._core.clock
        stale = lists.next_update is None or lists.old(clock.now()) or lists.from_later_than(clock.ceiling())
        if reply.revocations != lists.number or stale:
            await self._updates.apply_revocations(await self._client.ask(RevocationReply, RevocationList))
        rotation, forced = self._rotation, cause
        # Before a rotation, which may be refused: a suspension must not wait for it.
        synced = await self._sync(reply, reply.secret_version)
        await rotation.hear(reply.secret_version)
        before, unfinished = rotation.newest, rotation.rotation.step is not Step.IDLE
        if cause is None and reply.rotate_now:
            cause = Cause.URGENT
        if cause is None and self._core.clock.now() >= rotation.due_at():
            cause = Cause.DUE
        if cause is not None:
            await rotation.want(cause)
        if rotation.rotation.step is not Step.IDLE:
            await rotation.run()
        finished = before if unfinished and rotation.newest == before else 0
        # That was the end of an earlier rotation, whose secret was here already; a new one may have been asked for.
        again = forced if finished else None
        if finished and cause is Cause.URGENT and (await self._ask_status()).rotate_now:
            again = Cause.URGENT
        if again is not None:
            await rotation.want(again)
            await rotation.run()
        if renew or self._certificates.renewal_due(settled=self._updates.settled):
            await self._renew()
        if self._updates.settled:
            await self._updates.settle()
            await self._certificates.settle()
        if not synced and rotation.rotation.step is Step.IDLE:
            synced = await self._sync(reply, rotation.newest)
        # A server that knows no number of license changes was set back to release 0.1.0.
        if synced and reply.license_number is not UNSET:
            await self._lease()
        await self._negotiation.negotiate()
        if reply.license_number is UNSET and rotation.rotation.step is Step.IDLE and self._negotiation.can(SYNC):
            # It has just been learned.
            await self._licenses.sync(rotation.newest)
            await self._lease()
        if self._negotiation.can(REPORT):
            await self._usage.report()
        if self._ota is not None and self._negotiation.can(UPDATES):
            await self._ota.sync()
        if self._negotiation.can(CONFIGURATION):
            await self._configuration.sync()
        wanted = self._configuration.contact_interval or reply.next_contact_s
        self._wanted_s = contact_delay(self._core.agent_id, self._count, wanted)
        confirm_in = self._updates.confirm_in()
        if confirm_in is not None:
            spread = CONFIRM_SPREAD_S * share(self._core.agent_id, "confirm", self._count)
            self._wanted_s = min(self._wanted_s, confirm_in + spread)
        return Contacted(before, finished)

    async def _sync(self, reply: StatusReply, confirmed: int) -> bool:
        """Asks for changed licenses, unless there are none; False if there are, and no secret for their tokens yet.

        Args:
            reply: has the number of the newest change, if the server knows of that.
            confirmed: the secret version that the server issues licenses with.
        """
        if reply.license_number is UNSET or reply.license_number == self._licenses.number:
            return True
        if not confirmed or confirmed != self._rotation.newest:
            return False
        await self._licenses.sync(confirmed)
        return True

    async def _lease(self) -> None:
        if self._rotation.rotation.step is Step.IDLE and self._negotiation.can(LEASE) and self._seats.due():
            await self._seats.lease(self._rotation.newest)

    async def _ask_status(self) -> StatusReply:
        """The server's news, asked for in the form of release 0.1.0 if it does not know ours: it was set back."""
        if not self._negotiation.can(SYNC):
            return await self._ask_status_with(UNSET)
        try:
            return await self._ask_status_with(self._licenses.number)
        except ServerRefused as refused:
            if refused.refusal.code is not RefusalCode.BAD_REQUEST:
                raise
        reply = await self._ask_status_with(UNSET)
        await self._negotiation.forget(SYNC)
        return reply

    async def _ask_status_with(self, license_number: int | UnsetType) -> StatusReply:
        sealed, rotation, clock = self._checkpoint.sealed_head, self._rotation, self._core.clock
        began = clock.monotonic()
        reply = await self._client.ask(
            StatusReply,
            SecretStatus,
            current_secret_version=rotation.newest,
            key_check=rotation.newest_check(),
            highest_version=rotation.newest,
            serial=self.server.serial,
            audit_seq=None if sealed is None else sealed[0],
            audit_head=None if sealed is None else sealed[1],
            license_number=license_number,
        )
        await self._updates.hear_time(reply.issued_at, clock.monotonic() - began)
        return reply

    async def _fetch_key_set(self) -> None:
        problem: Exception | None = None
        # A root that this agent does not know yet may have signed the newest set; an older set, signed by a known root, names
        # it.
        for root in (None, *self.server.roots, None):
            server = self.server
            text = await self._client.fetch_key_set(root)
            try:
                found = verify_key_set(text, server.roots, above=server.key_set)
            except (MalformedToken, BadSignature) as error:
                problem = problem or error
                continue
            await self._updates.apply_key_set(found)
            if root is None:
                return
            problem = None
        if problem is not None:
            raise NotTheServer(f"the key set is not the server's: {problem}")

    async def _renew(self) -> None:
        renewal = self._certificates.new_renewal()
        reply = await self._client.ask(RenewReply, RenewCertificate, csr=renewal.csr)
        await self._certificates.accept(renewal, reply.certificates)

    # How it ended

    def _failed(self, error: BaseException) -> None:
        now, record = self._core.clock.monotonic(), self.record
        record.failures += 1
        text = str(error)
        if isinstance(error, NoContact) and (problem := self._certificates.problem()):
            text = f"{text}; {problem}"
        record.problem = text[:400]
        record.certificate_unknown = isinstance(error, CertificateRefused) and not self._client.has_challenge
        self._core.counters.contacts_failed += 1
        retry_after: float | None = None
        outcome = "failed"
        if isinstance(error, ServerRefused):
            outcome = "refused"
            record.refused = str(error)[:300]
            # The server signed it, but a day without a contact helps nobody: there may be something else to learn.
            retry_after = min(error.refusal.retry_after_s or 0, LONGEST_PAUSE_S)
            self._breaker.succeeded()
        elif isinstance(error, NoContact):
            outcome = "not_the_server" if isinstance(error, NotTheServer) else "failed"
            retry_after = error.retry_after_s
            self._breaker.failed(now, retry_after or 0.0)
        if record.failures == 1 or outcome != "failed":
            self._core.audit.record("server.contact", outcome, text=record.problem, failures=record.failures)
        self._since = now
        self._wanted_s = max(delay(record.failures, self._draw()), retry_after or 0.0)

    def _succeeded(self) -> None:
        if self.record.failures or self.record.last is None:
            self._core.audit.record("server.contact", "ok", failures=self.record.failures)
        self._breaker.succeeded()
        self.record = ContactRecord(0, self._core.clock.now())
        self._since = self._core.clock.monotonic()
