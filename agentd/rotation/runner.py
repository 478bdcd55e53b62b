"""Performs the rotation, step by step: the journal first, then the effect, then the next step (`rotationtable` says which)."""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from agentd.audit.log import AuditLog
from agentd.base.clock import Clock
from agentd.licenses.validator import Engine, EngineRefused
from agentd.pos.service import told
from agentd.secrets.installer import FRESH_S, SecretOps
from agentd.secrets.key_confirmation import key_check
from agentd.uplink.client import Exchange, NotTheServer
from contracts.exchange import (
    MAX_LICENSES_PER_REQUEST,
    Cause,
    ConfirmReply,
    ConfirmRotation,
    RefusalCode,
    Refused,
    ReissueLicenses,
    ReissueReply,
    RotateReply,
    RotateSecret,
)
from contracts.jose import BadSignature, MalformedToken
from contracts.licensetoken import WrongAudience
from hwsec.files import no_trace, write_atomic
from hwsec.vault import Vault

from .table import Event, Rotation, Step, advance, begun, taken_up, unconfirmed

log = logging.getLogger(__name__)

ACTOR = {"process": "rotation"}
_LOST = (RefusalCode.UNKNOWN_VERSION, RefusalCode.KEY_MISMATCH)


class Rotor:
    """Runs the rotations of one agent, one at a time. The caller sees to it that only one call is under way.

    Args:
        journal: the file that says where a rotation stands.
        ops: seals what is delivered.
        engine: works with it.
        vault: opens secrets, for their checks.
        exchange: asks the server.
        audit: logs.
        clock: for the journal.
        serial: the agent's serial number.
        keep_book: makes durable what the license book has learned; raises OSError.
        trace: told each step that is done; a test stops it there.
    """

    def __init__(
        self,
        journal: Path,
        ops: SecretOps,
        engine: Engine,
        vault: Vault,
        exchange: Exchange,
        audit: AuditLog,
        clock: Clock,
        serial: int,
        keep_book: Callable[[], Awaitable[None]],
        trace: Callable[[str], None] = no_trace,
    ) -> None:
        self._path = journal
        self._ops = ops
        self._engine = engine
        self._vault = vault
        self._exchange = exchange
        self._audit = audit
        self._clock = clock
        self._serial = serial
        self._keep_book = keep_book
        self._trace = trace
        self.rotation = taken_up(self._read(), self.newest)

    @property
    def newest(self) -> int:
        """Number of the newest version; 0 before the first."""
        newest = self._engine.newest
        return 0 if newest is None else newest.meta.version

    def newest_check(self) -> str | None:
        """The key check of the newest version; None if there is none, or its secret is destroyed."""
        newest = self._engine.newest
        if newest is None or newest.secret is None:
            return None
        return key_check(self._vault, newest.secret, self._engine.agent_id, newest.meta.version)

    def _read(self) -> Rotation:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Rotation)
        except FileNotFoundError:
            return Rotation()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            log.warning("%s could not be read; the server is asked where the rotation stands", self._path)
            return Rotation()

    def _journal(self, rotation: Rotation) -> None:
        write_atomic(self._path, msgspec.json.encode(rotation))
        self.rotation = rotation
        self._trace(f"journal: {rotation.step.value}")

    # What begins a rotation

    def want(self, cause: Cause) -> None:
        """Begins a rotation, unless one is under way. Raises OSError if the journal cannot be written."""
        if self.rotation.step is Step.IDLE:
            self._journal(begun(cause, self.newest, self._clock.now()))
            self._audit.record("rotation.begun", "ok", cause=cause.value, secret_version=self.newest)

    def hear(self, server_version: int) -> None:
        """Takes in which version the server makes licenses with: if the newest here is newer, it is to be confirmed."""
        if self.rotation.step is Step.IDLE and server_version < self.newest:
            self._journal(unconfirmed(self.newest, self._clock.now()))

    # What goes on with it

    async def run(self) -> None:
        """Takes the rotation to its end.

        Raises:
            NoContact, HwsecError, AuditUnavailable, OSError: it stands where it stood, and can be taken up by another call.
            Refused: the server will not go on; the rotation is given up as far as it can be.
            EngineRefused: what was delivered is replayed or out of order.
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
            except Refused as refused:
                if not self._refused(refused):
                    raise
                continue
            self._journal(following)

    def _refused(self, refused: Refused) -> bool:
        """Takes in a refusal; returns whether the rotation goes on."""
        step, code = self.rotation.step, refused.refusal.code
        lost = code in _LOST and step in (Step.SEALED, Step.CONFIRMED)
        self._audit.record("rotation.refused", code.value, step=step.value, text=refused.refusal.text[:300])
        log.warning("rotation: %s", refused)
        self._journal(advance(self.rotation, Event.LOST if lost else Event.REFUSED))
        return lost

    async def _request(self) -> Rotation:
        began = self._clock.monotonic()
        reply = await self._exchange.ask(
            RotateReply,
            RotateSecret,
            current_secret_version=self.newest,
            key_check=self.newest_check(),
            highest_version=self.newest,
            serial=self._serial,
            cause=self.rotation.cause,
        )
        self._trace("delivered")
        try:
            prompt = self._clock.monotonic() - began <= FRESH_S
            meta = await self._ops.install(reply.delivery, ACTOR, answered=reply.issued_at, prompt=prompt)
        except (MalformedToken, BadSignature, WrongAudience) as error:
            raise NotTheServer(f"the delivered secret is not acceptable: {error}") from None
        self._trace("sealed")
        return advance(self.rotation, Event.DELIVERED, meta.version)

    async def _confirm(self) -> Rotation:
        check = self.newest_check()
        if check is None:
            # It was given up meanwhile; the server learns of the next one.
            return advance(self.rotation, Event.LOST)
        await self._exchange.ask(ConfirmReply, ConfirmRotation, secret_version=self.rotation.version, key_check=check)
        self._trace("confirmed")
        return advance(self.rotation, Event.ACKNOWLEDGED)

    async def _reissue(self) -> Rotation:
        licenses = self._engine.book.licenses()
        for start in range(0, len(licenses), MAX_LICENSES_PER_REQUEST):
            part = licenses[start : start + MAX_LICENSES_PER_REQUEST]
            reply = await self._exchange.ask(
                ReissueReply, ReissueLicenses, licenses=tuple(part), secret_version=self.rotation.version
            )
            self._take_over(reply)
            # Before the journal says that they are here: nobody would ask for them again.
            await self._keep_book()
            self._trace("reissued")
        return advance(self.rotation, Event.REISSUED)

    def _take_over(self, reply: ReissueReply) -> None:
        now = self._clock.now()
        for token in reply.tokens:
            try:
                verdict = self._engine.judge_import(token, now)
                self._engine.import_token(token, now)
            except EngineRefused as error:
                self._audit.record("license.imported", "refused", actor=ACTOR, text=str(error))
            else:
                self._audit.record("license.imported", "ok", actor=ACTOR, **told(verdict))
        for license_id in reply.missing:
            self._audit.record("license.not_reissued", "missing", license=license_id)

    async def _finish(self) -> Rotation:
        rotation = self.rotation
        self._audit.record(
            "rotation.completed", "ok", cause=rotation.cause.value, secret_version=rotation.version, was=rotation.before
        )
        log.info("rotation: secret version %d is in use on both sides", rotation.version)
        return advance(rotation, Event.LOGGED)
