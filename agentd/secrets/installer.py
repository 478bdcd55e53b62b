"""Runs changes of secrets: opens deliveries, commits, and only then lets the engine work with them.

Each change is logged durably before its effect, and committed on the hardware's own thread; the event loop goes on meanwhile.
"""

import asyncio
import base64
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from agentd.audit.log import AuditLog
from agentd.base import timeanchor
from agentd.base.clock import Clock
from agentd.base.hardware import Hardware, Line
from agentd.base.timeanchor import Reading, TimeAnchor
from agentd.licenses.validator import Engine, EngineRefused
from agentd.telemetry.metrics import Counters
from audittrail.chain import CERTIFIED
from contracts.delivery import Delivery, decrypt_secret, verify_delivery
from contracts.jose import MalformedToken
from contracts.servertime import verify_server_time
from hwsec.backend import Backend, BackendStatus
from hwsec.bootclock import read_boot_clock
from hwsec.errors import HwsecError
from hwsec.secretmem import SecretBuffer
from hwsec.store import Contents, Loaded, StoredVersion
from hwsec.storeformat import VersionMeta
from hwsec.vault import SECRET_BYTES, Vault, WrappedSecret

from .lifecycle import State

log = logging.getLogger(__name__)

T = TypeVar("T")

COMMIT_DEADLINE_S = 20.0
CHALLENGE_S = 24 * 3600
"""A challenge may be carried to the server and its answer back by hand."""
FRESH_S = 60.0
"""An answer within this time tells what time it is, and not only what time it has been."""
STATUS_DEADLINE_S = 5.0

SEAL_MISMATCH = (
    "the audit log does not fit its seal: records up to a sealed checkpoint are missing, another log was put there, "
    "or the agent was enrolled anew"
)

SECTION_TRUST = "trust"
SECTION_TIME = "server_time"
SECTION_HARDWARE = "hardware_id"
SECTION_BINDING = "server"
SECTION_REVOCATIONS = "revocations"
SECTION_TLS = "tls"


class SecretOps:
    """Installs and invalidates secret versions.

    Args:
        hardware: backend, store and their thread.
        engine: works with what is committed.
        audit: logs.
        clock: takes over server-signed times.
        counters: of this run.
        sections: of the store as it was loaded.
        generation: of the store as it was loaded.
        sealed: what may be sealed of the audit log: the values around its last checkpoint.

    Attributes:
        sealed_head: number of the last checkpoint of this run, and what it sealed, hex: the server is told.
    """

    def __init__(
        self,
        hardware: Hardware,
        engine: Engine,
        audit: AuditLog,
        clock: Clock,
        counters: Counters,
        sections: Mapping[str, bytes],
        generation: int,
        sealed: Collection[bytes],
    ) -> None:
        self._hardware = hardware
        self._engine = engine
        self._audit = audit
        self._clock = clock
        self._counters = counters
        self._sections = dict(sections)
        self._sealed = sealed
        self._lock = asyncio.Lock()
        self._challenge: tuple[str, float] | None = None
        self.sealed_head: tuple[int, str] | None = None
        self.generation = generation
        self.status = BackendStatus(hardware.name, True, "", hardware.name == "tpm")
        hardware.on_reload = self._reloaded

    async def install(
        self, delivery_text: str, actor: dict[str, Any], *, answered: int | None = None, prompt: bool = False
    ) -> VersionMeta:
        """Takes over a delivered secret version as the new ACTIVE one.

        Args:
            delivery_text: as in `contracts.delivery`.
            actor: who brings it.
            answered: when the server signed the reply that brought it; None if it was carried here by hand.
            prompt: that reply is to a request of just now: then it also tells what time it is.

        Raises:
            MalformedToken, BadSignature, WrongAudience: the delivery is not acceptable.
            EngineRefused: it is replayed or out of order.
            HwsecError: the hardware or the disk did not take it; nothing has changed.
            AuditUnavailable: the log cannot be written; nothing has changed.
        """
        async with self._lock:
            try:
                meta = await self._install(delivery_text, actor, answered, prompt)
            except BaseException as error:
                self._counters.rotations_failed += 1
                self._audit.record("secret.install", "failed", actor=actor, error=type(error).__name__, text=str(error)[:300])
                raise
            self._counters.rotations += 1
            return meta

    async def _install(self, delivery_text: str, actor: dict[str, Any], answered: int | None, prompt: bool) -> VersionMeta:
        engine = self._engine
        delivery = verify_delivery(delivery_text, engine.agent_id, engine.trust)
        if answered is not None:
            _check_dates(delivery, answered)
        meta = VersionMeta(
            version=delivery.version,
            state=State.ACTIVE.value,
            valid_from=delivery.valid_from,
            valid_until=delivery.valid_until,
            grace_until=delivery.grace_until,
            installed_at=self._clock.now(),
        )
        anchor, sections = None, dict(self._sections)
        signed = delivery.issued_at if answered is None else max(answered, delivery.issued_at)
        if signed > self._clock.floor or self._clock.anchor is None:
            # By hand it may have been carried here for days: then it is a lower bound of the time, no more.
            agreed = abs(self._clock.wall() - signed) <= timeanchor.TOLERANCE_S
            anchor = await self._anchor_at(signed, fresh=agreed or prompt)
            sections[SECTION_TIME] = timeanchor.encode(anchor)
        # Refused before the hardware is asked, if it will be refused.
        engine.with_new_secret(StoredVersion(meta, None), sections)
        vault = self._hardware.vault
        wrapped = await self._hardware.run(lambda line: unwrap(line.backend, vault, delivery), COMMIT_DEADLINE_S)
        contents = engine.with_new_secret(StoredVersion(meta, wrapped), sections)
        await self._audit.record_durably("secret.install", "begun", actor=actor, secret_version=meta.version, **dates(meta))
        await self._commit(contents)
        if anchor is not None:
            self._clock.set_anchor(anchor, *await self._readings())
        self._audit.record("secret.installed", "ok", actor=actor, secret_version=meta.version, generation=self.generation)
        return meta

    async def invalidate(self, version: int, actor: dict[str, Any]) -> None:
        """Gives up a version for good; its secret is destroyed. Raises as `install`; NoSuchVersion too."""
        async with self._lock:
            await self._hardware.ready(COMMIT_DEADLINE_S)
            contents = self._engine.with_invalidated(version, self._clock.now(), self._sections)
            await self._audit.record_durably("secret.invalidate", "begun", actor=actor, secret_version=version)
            await self._commit(contents)
            self._audit.record("secret.state_changed", "ok", actor=actor, secret_version=version, state=State.INVALIDATED.value)

    # Time

    async def _readings(self) -> tuple[Reading, Reading | None]:
        """CLOCK_BOOTTIME and the TPM's clock; None where there is no TPM, or it does not answer."""
        return await self._hardware.run(lambda line: read_counters(line.backend), COMMIT_DEADLINE_S)

    async def _anchor_at(self, signed: int, *, fresh: bool) -> TimeAnchor:
        boot, tpm = await self._readings()
        return TimeAnchor(signed, fresh, boot, tpm)

    def challenge(self) -> str:
        """A new challenge for the server's time; an earlier one is no longer answered."""
        challenge = os.urandom(16).hex()
        self._challenge = (challenge, self._clock.monotonic())
        return challenge

    async def reset_clock(self, statement: str, actor: dict[str, Any]) -> int:
        """Takes over the server's time in answer to the last challenge, even if it is before the floor; returns it.

        Raises:
            EngineRefused: there was no challenge, or it is too old.
            MalformedToken, BadSignature, WrongAudience: the statement is not acceptable.
            HwsecError, AuditUnavailable: as `install`.
        """
        async with self._lock:
            if self._challenge is None:
                raise EngineRefused("no challenge is waiting for an answer: 'license-agent-cli clock challenge' makes one")
            challenge, made = self._challenge
            age = self._clock.monotonic() - made
            if age > CHALLENGE_S:
                raise EngineRefused(f"the challenge is more than {CHALLENGE_S // 3600} hours old: make a new one")
            signed = verify_server_time(statement, self._engine.agent_id, challenge, self._engine.trust)
            anchor = await self._anchor_at(signed, fresh=age <= FRESH_S)
            await self._audit.record_durably(
                "clock.reset", "begun", actor=actor, signed=signed, floor=self._clock.floor, wall=int(self._clock.wall())
            )
            self._challenge = None
            contents = self._engine.contents({**self._sections, SECTION_TIME: timeanchor.encode(anchor)})
            await self._commit(contents)
            self._clock.set_anchor(anchor, *await self._readings())
            self._audit.record("clock.reset", "ok", actor=actor, signed=signed)
            return signed

    async def hear_time(self, signed: int, *, fresh: bool) -> None:
        """Goes by a time that the server has signed just now; it is committed with whatever is committed next.

        Raises:
            HwsecError: the hardware does not tell its clock.
        """
        async with self._lock:
            anchor = await self._anchor_at(signed, fresh=fresh)
            self._sections[SECTION_TIME] = timeanchor.encode(anchor)
            self._clock.set_anchor(anchor, *await self._readings())

    async def keep(self, changes: Mapping[str, bytes], event: str, **fields: Any) -> None:
        """Commits sections of the store: what the server has said.

        Args:
            changes: sections by name.
            event: what is logged, before and after.
            fields: what is logged of it.

        Raises:
            HwsecError, AuditUnavailable: as `install`; nothing has changed.
        """
        async with self._lock:
            await self._audit.record_durably(event, "begun", **fields)
            await self._commit(self._engine.contents({**self._sections, **changes}))
            self._audit.record(event, "ok", generation=self.generation)

    def section(self, name: str) -> bytes | None:
        """A section of the store, as it was last committed."""
        return self._sections.get(name)

    async def _commit(self, contents: Contents) -> None:
        self.generation = await self._hardware.run(lambda line: line.store.commit(contents), COMMIT_DEADLINE_S)
        self._sections = dict(contents.sections)
        self._engine.take_over(contents)

    async def checkpoint(self) -> None:
        """Seals the heads of the audit log's chains.

        Raises:
            AuditUnavailable: the log cannot be written.
            HwsecError: the hardware does not take it; the next one will.
        """
        async with self._lock:
            hardware = self._hardware
            before = await hardware.run(lambda line: line.backend.read_audit(), COMMIT_DEADLINE_S)
            reseal = before not in self._sealed
            if reseal:
                log.critical("ALERT %s", SEAL_MISMATCH)
                self._audit.record("alert.audit_seal", "mismatch", text=SEAL_MISMATCH, found=before.hex())
            digest, value = await self._audit.checkpoint(before, reseal=reseal)
            self._sealed = (before, value)
            found = await hardware.run(lambda line: line.backend.extend_audit(digest), COMMIT_DEADLINE_S)
            if found != value:
                # The next checkpoint finds, alerts and reseals it.
                log.critical("ALERT the sealed audit value is not what this agent made it: somebody else extends it")
                return
            self.sealed_head = (self._audit.seq, digest.hex())
            certified = await hardware.run(lambda line: line.backend.certify_audit(digest), COMMIT_DEADLINE_S)
            self._audit.record(
                CERTIFIED,
                "ok",
                attested=base64.b64encode(certified.attested).decode("ascii"),
                signature=base64.b64encode(certified.signature).decode("ascii"),
            )
            self._audit.flush()

    async def on_hardware(self, work: Callable[[Line], T]) -> T:
        """Runs `work` on the hardware's thread, apart from any commit. Raises as `Hardware.run`."""
        async with self._lock:
            return await self._hardware.run(work, COMMIT_DEADLINE_S)

    async def sealed_audit_value(self) -> bytes:
        """The sealed audit value."""
        async with self._lock:
            return await self._hardware.run(lambda line: line.backend.read_audit(), COMMIT_DEADLINE_S)

    async def refresh_status(self) -> BackendStatus:
        """Asks the hardware how it is. Never raises: what hangs is a state too."""
        async with self._lock:
            try:
                status = await self._hardware.ask(lambda line: line.backend.status(), STATUS_DEADLINE_S)
                if status.available:
                    await self._hardware.ready(COMMIT_DEADLINE_S)
            except HwsecError as error:
                status = replace(self.status, available=False, state=error.state, detail=str(error))
            self.status = status
        return status

    def _reloaded(self, loaded: Loaded) -> None:
        """Takes over the store as a new connection has found it: an abandoned commit may have been done after all."""
        for repair in loaded.repairs:
            log.warning("%s", repair)
            self._audit.record("store.repaired", "ok", text=repair)
        if loaded.generation != self.generation:
            self._audit.record("store.reloaded", "ok", generation=loaded.generation, expected=self.generation)
            self.generation = loaded.generation
            self._sections = dict(loaded.contents.sections)
            self._engine.take_over(loaded.contents)


def _check_dates(delivery: Delivery, answered: int) -> None:
    """A version that begins later would keep out all its successors until then; one that has ended is of no use.

    Raises:
        MalformedToken: the delivery does not fit the time of the reply that brought it.
    """
    if delivery.issued_at > answered:
        raise MalformedToken("the delivery was signed later than the reply that brings it")
    if not delivery.valid_from <= answered < delivery.valid_until:
        raise MalformedToken("the delivered secret is not valid at the time of the reply that brings it")


def unwrap(backend: Backend, vault: Vault, delivery: Delivery) -> WrappedSecret:
    """Decrypts a delivered secret into the vault; it is in clear only in secret memory."""
    encrypted = delivery.encrypted
    with (
        backend.agree(encrypted.peer_point) as shared,
        SecretBuffer(SECRET_BYTES) as key,
        SecretBuffer(SECRET_BYTES) as secret,
    ):
        decrypt_secret(encrypted, shared.view, key.view, secret.view)
        return vault.wrap(secret)


def read_counters(backend: Backend) -> tuple[Reading, Reading | None]:
    """CLOCK_BOOTTIME, and the TPM's clock where there is a TPM that answers."""
    boot = read_boot_clock()
    tpm = None
    if backend.name == "tpm":
        try:
            clock = backend.clock()
        except HwsecError as error:
            log.warning("the TPM's clock cannot be read: %s", error)
        else:
            tpm = Reading(clock.milliseconds, clock.reset_count)
    return Reading(boot.milliseconds, boot.reset_count), tpm


def dates(meta: VersionMeta) -> dict[str, int]:
    """The dates of a version, for the log."""
    return {"valid_from": meta.valid_from, "valid_until": meta.valid_until, "grace_until": meta.grace_until}
