"""Performs the rotation step by step: journal first, then the effect, then the next step. `table` says which step that is."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from agentd.audit.core import Core
from agentd.base.errors import Refused
from agentd.licenses.validator import Validator
from agentd.secrets.installer import SecretInstaller
from agentd.secrets.lifecycle import valid_until
from agentd.secrets.trusted_time import FRESH_S
from agentd.uplink.client import ExchangeClient
from agentd.uplink.transport import NotTheServer
from common.files import no_trace, write_atomic
from contracts.exchange import (
    MAX_LICENSES_PER_REQUEST,
    Cause,
    ConfirmReply,
    ConfirmRotation,
    RefusalCode,
    ReissueLicenses,
    ReissueReply,
    RotateReply,
    RotateSecret,
)
from contracts.exchange import Refused as ServerRefused
from contracts.jose import BadSignature, MalformedToken
from contracts.keyconfirmation import key_check
from contracts.licensetoken import WrongAudience

from .table import Event, Rotation, Step, advance, begun, rotation_time, taken_up, unconfirmed

log = logging.getLogger(__name__)

ACTOR = {"process": "rotation"}
_LOST = (RefusalCode.UNKNOWN_VERSION, RefusalCode.KEY_MISMATCH)


class RotationRunner:
    """Runs the rotations of one agent, one at a time; the caller makes sure that only one call is under way.

    Args:
        journal: the file that says where a rotation stands.
        installer: seals what is delivered.
        validator: accepts re-issued licenses.
        client: asks the server.
        trace: called after each step; a test stops the run there.
    """

    def __init__(
        self,
        core: Core,
        journal: Path,
        installer: SecretInstaller,
        validator: Validator,
        client: ExchangeClient,
        trace: Callable[[str], None] = no_trace,
    ) -> None:
        self._core = core
        self._path = journal
        self._installer = installer
        self._store = installer.store
        self._ring = installer.store.ring
        self._validator = validator
        self._client = client
        self._trace = trace
        self.rotation = taken_up(self._read(), self.newest)

    @property
    def newest(self) -> int:
        """Number of the newest version; 0 before the first."""
        return self._ring.newest_number

    @property
    def serial(self) -> int:
        """The agent's number in the server's registry."""
        server = self._store.record.server
        if server is None:
            raise RuntimeError("an agent that rotates must have a server")
        return server.serial

    def newest_check(self) -> str | None:
        """The key confirmation of the newest version; None without one, or where its secret was destroyed."""
        newest = self._ring.newest
        if newest is None or newest.secret is None:
            return None
        with self._core.vault.open(newest.secret) as secret:
            return key_check(secret.view, self._core.agent_id, newest.meta.version)

    def due_at(self) -> float:
        """When a rotation should begin, seconds since 1970 UTC; 0 where it should begin now.

        That is while one is under way, before the first secret, and where the newest begins later than it can be: a wrong clock
        of the server has dated it. As long as the server's time is not taken, its next one would be no better.
        """
        newest, ceiling = self._ring.newest, self._core.clock.ceiling()
        if newest is None or self.rotation.step is not Step.IDLE:
            return 0
        meta = newest.meta
        if self._store.record.unconfirmed is None and ceiling is not None and meta.valid_from > ceiling:
            return 0
        return rotation_time(self._core.agent_id, meta.version, meta.valid_from, valid_until(meta, self._ring.limits))

    def _read(self) -> Rotation:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Rotation)
        except FileNotFoundError:
            return Rotation()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            log.warning("%s could not be read; the agent asks the server where the rotation stands", self._path)
            return Rotation()

    async def _journal(self, rotation: Rotation) -> None:
        # In a thread: it waits for the disk twice, and no validation waits with it.
        await asyncio.to_thread(write_atomic, self._path, msgspec.json.encode(rotation))
        self.rotation = rotation
        self._trace(f"journal: {rotation.step.value}")

    # What begins a rotation

    async def want(self, cause: Cause) -> None:
        """Begins a rotation unless one is under way. Raises OSError if the journal cannot be written."""
        if self.rotation.step is Step.IDLE:
            await self._journal(begun(cause, self.newest, self._core.clock.now()))
            self._core.audit.record("rotation.begun", "ok", cause=cause.value, secret_version=self.newest)

    async def hear(self, server_version: int) -> None:
        """Notes which version the server makes licenses with; if the agent's is newer, it must be confirmed."""
        if self.rotation.step is Step.IDLE and server_version < self.newest:
            await self._journal(unconfirmed(self.newest, self._core.clock.now()))

    # What goes on with it

    async def run(self) -> None:
        """Takes the rotation to its end.

        Raises:
            NoContact, HwsecError, AuditUnavailable, OSError: the rotation stays at its step; another call continues it.
            contracts.exchange.Refused: the server will not go on; the rotation is abandoned as far as it can be.
            Refused: what was delivered is replayed or out of order.
        """
        effects: dict[Step, Callable[[], Awaitable[Rotation]]] = {
            Step.REQUESTED: self._request,
            Step.SEALED: self._confirm,
            Step.CONFIRMED: self._reissue,
            Step.ACTIVATED: self._finish,
        }
        while self.rotation.step is not Step.IDLE:
            try:
                following = await effects[self.rotation.step]()
            except ServerRefused as refused:
                if not await self._refused(refused):
                    raise
                continue
            await self._journal(following)

    async def _refused(self, refused: ServerRefused) -> bool:
        """Records a refusal; returns whether the rotation goes on."""
        step, code = self.rotation.step, refused.refusal.code
        lost = code in _LOST and step in (Step.SEALED, Step.CONFIRMED)
        self._core.audit.record("rotation.refused", code.value, step=step.value, text=refused.refusal.text[:300])
        log.warning("rotation: %s", refused)
        await self._journal(advance(self.rotation, Event.LOST if lost else Event.REFUSED))
        return lost

    async def _request(self) -> Rotation:
        clock = self._core.clock
        began = clock.monotonic()
        reply = await self._client.ask(
            RotateReply,
            RotateSecret,
            current_secret_version=self.newest,
            key_check=self.newest_check(),
            highest_version=self.newest,
            serial=self.serial,
            cause=self.rotation.cause,
        )
        self._trace("delivered")
        try:
            prompt = clock.monotonic() - began <= FRESH_S
            meta = await self._installer.install(reply.delivery, ACTOR, answered=reply.issued_at, prompt=prompt)
        except (MalformedToken, BadSignature, WrongAudience) as error:
            raise NotTheServer(f"the delivered secret is not acceptable: {error}") from None
        self._trace("sealed")
        return advance(self.rotation, Event.DELIVERED, meta.version)

    async def _confirm(self) -> Rotation:
        check = self.newest_check()
        if check is None:
            # An administrator invalidated it meanwhile; the server learns of the next one.
            return advance(self.rotation, Event.LOST)
        await self._client.ask(ConfirmReply, ConfirmRotation, secret_version=self.rotation.version, key_check=check)
        self._trace("confirmed")
        return advance(self.rotation, Event.ACKNOWLEDGED)

    async def _reissue(self) -> Rotation:
        inventory = self._validator.inventory
        licenses = inventory.licenses()
        for start in range(0, len(licenses), MAX_LICENSES_PER_REQUEST):
            part = licenses[start : start + MAX_LICENSES_PER_REQUEST]
            reply = await self._client.ask(
                ReissueReply, ReissueLicenses, licenses=tuple(part), secret_version=self.rotation.version
            )
            self._import(reply)
            # Before the journal says that they are here: nobody would ask for them again.
            await inventory.save()
            self._trace("reissued")
        return advance(self.rotation, Event.REISSUED)

    def _import(self, reply: ReissueReply) -> None:
        now, audit = self._core.clock.now(), self._core.audit
        for token in reply.tokens:
            try:
                ruling = self._validator.judge_import(token, now)
                self._validator.import_token(token, now)
            except Refused as error:
                audit.record("license.imported", "refused", actor=ACTOR, text=str(error))
            else:
                audit.record("license.imported", "ok", actor=ACTOR, **ruling.audit_fields())
        for license_id in reply.missing:
            audit.record("license.not_reissued", "missing", license=license_id)

    async def _finish(self) -> Rotation:
        rotation = self.rotation
        self._core.audit.record(
            "rotation.completed", "ok", cause=rotation.cause.value, secret_version=rotation.version, was=rotation.before
        )
        log.info("rotation: secret version %d is in use on both sides", rotation.version)
        return advance(rotation, Event.LOGGED)
