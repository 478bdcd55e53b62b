"""Performs what an administrator of the machine wants of updates. Each act is recorded before its effect."""

import logging
from typing import Any

import msgspec

from agentd.audit.core import Core
from agentd.base.errors import Refused

from .runner import UpdateRunner
from .sides import Declined, Hindered, Installer, Updater
from .table import IN_TRIAL, WAITS, Event, Failure, Order, Step, Update, advance, offered, undone, unlocked

log = logging.getLogger(__name__)

_BEGUN = (Step.BACKED_UP, Step.DOWNLOADED, Step.STAGED)
"""The steps at which an installation has begun, and has switched nothing."""


class UpdateActs:
    """Performs them.

    Args:
        runner: moves the update.
        updater: takes packages.
        installer: says what is installed.
    """

    def __init__(self, core: Core, runner: UpdateRunner, updater: Updater, installer: Installer) -> None:
        self._core = core
        self._runner = runner
        self._updater = updater
        self._installer = installer

    async def install(self, who: str, actor: dict[str, Any], *, rehearsal: bool = False) -> Order:
        """Installs what is offered now, whatever window, notice and shop say. The directive's own times hold.

        What has begun, and is hindered, is tried again at once: who has made room does not wait for the end of a pause.

        Args:
            who: for the register.
            actor: for the audit log.
            rehearsal: go back at the end, on purpose.

        Raises:
            Refused: nothing is offered, an installation is under way, or updates are locked or paused.
        """
        runner, update = self._runner, self._runner.update
        order = update.order
        if order is not None and update.step in _BEGUN and runner.hindrance is not None and not rehearsal and not runner.paused:
            self._core.audit.record("ota.wanted", "install", actor=actor, product=order.product)
            runner.try_again()
            return order
        self._require_free(update)
        if order is None or not (update.step in WAITS or (update.step is Step.IDLE and update.retry_at)):
            raise Refused("no update is offered to this machine; 'license-agent-cli ota check' asks the license server")
        wanted = msgspec.structs.replace(order, operator=who)
        self._core.audit.record("ota.wanted", "rehearsal" if rehearsal else "install", actor=actor, product=order.product)
        await runner.interrupt()
        if update.step is Step.IDLE:
            await runner.keep(offered(runner.update, wanted, self._core.clock.now(), urgent=True, rehearsal=rehearsal))
        else:
            await runner.keep(msgspec.structs.replace(runner.update, order=wanted, urgent=True, rehearsal=rehearsal))
        runner.tick()
        return wanted

    def _require_free(self, update: Update) -> None:
        if update.step is Step.LOCKED:
            raise Refused("updates are locked after failed attempts; 'license-agent-cli ota unlock' releases them")
        if self._runner.paused:
            raise Refused(f"{self._runner.paused}; 'license-agent-cli ota pause --end' ends a pause of this machine")
        if update.step not in (Step.IDLE, *WAITS):
            raise Refused(f"an update is under way ({update.step.value}): wait until it has ended")

    async def take(self, package: int, sha256: str, who: str, actor: dict[str, Any]) -> Order:
        """Takes a package from an administrator's descriptor and installs it, after the same checks as any other (OT-09).

        Args:
            package: descriptor of the bundle; stays the caller's.
            sha256: of the package in it, as the administrator wants it, hex.
            who: for the register.
            actor: for the audit log.

        Raises:
            Refused: the updater does not accept it, or another update is under way.
        """
        runner, now = self._runner, self._core.clock.now()
        self._require_free(runner.update)
        self._core.audit.record("ota.wanted", "package", actor=actor)

        def progress(done: int, total: int) -> None:
            runner.situation.progress = (done, total)

        try:
            found = await self._updater.take(package, now, progress)
        except (Declined, Hindered) as error:
            raise Refused(f"the package is not accepted: {error}") from None
        if found.sha256 != sha256:
            raise Refused("the package in the file is not the one that was asked for: its SHA-256 is another")
        order = Order(
            number=0, product=found.product, version=found.version, build_id=found.build_id, sha256=found.sha256,
            source="package", operator=who, received=now, notes=found.notes, length=found.length,
        )  # fmt: skip
        await runner.interrupt()
        update = runner.update
        self._require_free(update)
        if update.step is not Step.IDLE:
            # The server names its directive again once this is done.
            update = msgspec.structs.replace(advance(update, Event.WITHDRAWN), done=update.done)
        await runner.keep(offered(update, order, now, urgent=True))
        runner.tick()
        return order

    async def roll_back(self, product: str, who: str, actor: dict[str, Any]) -> str:
        """Goes back to the version before; returns that version.

        Raises:
            Refused: there is none, or an installation is under way.
        """
        runner, update = self._runner, self._runner.update
        failure = Failure(code="operator", text=f"{who} went back", counted=False, final=True)
        order = update.order
        if update.step in IN_TRIAL and order is not None and order.product == product:
            self._core.audit.record("ota.wanted", "rollback", actor=actor, product=product)
            runner.abort(failure)
            runner.tick()
            return update.before
        if update.step not in (Step.IDLE, *WAITS):
            raise Refused(f"an update is {update.step.value}; wait until it has ended")
        try:
            installed = (await self._installer.products()).get(product)
        except (Declined, Hindered) as error:
            raise Refused(f"the installer cannot be asked: {error}") from None
        if installed is None:
            raise Refused(f"this machine has no product {product!r}; installer.toml names its products")
        if installed.problem:
            raise Refused(f"the installer cannot say what runs: {installed.problem}")
        if not installed.previous:
            raise Refused(f"the installer has no version of {product} before {installed.version}")
        self._core.audit.record("ota.wanted", "rollback", actor=actor, product=product)
        await runner.interrupt()
        update = runner.update
        if update.step is not Step.IDLE:
            update = msgspec.structs.replace(advance(update, Event.WITHDRAWN), done=update.done)
        running = Order(
            number=0, product=product, version=installed.version, build_id=installed.build_id, sha256="", operator=who
        )
        await runner.keep(undone(update, running, failure, self._core.clock.now()))
        runner.tick()
        return installed.previous

    async def unlock(self, who: str, why: str, actor: dict[str, Any]) -> int:
        """Lets updates begin again after failed attempts (OT-07); returns how many had failed.

        Raises:
            Refused: updates are not locked.
            AuditUnavailable: it cannot be recorded.
        """
        runner = self._runner
        attempts = runner.update.attempts
        if runner.update.step is not Step.LOCKED:
            raise Refused("updates are not locked")
        await self._core.audit.record_durably("ota.unlocked", "ok", actor=actor, operator=who, why=why, attempts=attempts)
        await runner.keep(unlocked(runner.update))
        return attempts

    async def pause(self, who: str, actor: dict[str, Any], *, end: bool) -> None:
        """Lets nothing begin on this machine, or ends that."""
        self._core.audit.record("ota.paused", "ended" if end else "begun", actor=actor, operator=who)
        await self._runner.pause("" if end else who)
