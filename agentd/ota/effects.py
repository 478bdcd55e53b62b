"""Performs the effects of an update's steps. Each returns what follows, and may be repeated; `runner` journals it.

An effect that has to wait raises `Wait`, one that something hinders `Hindered`, one that is refused `Declined`.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from agentd.audit.core import Core

from .consent import Said, Traffic, require_consent
from .hindrances import FILES
from .register import REHEARSAL, Register, entry_of
from .settings import Settings, terms_of
from .sides import Declined, Hindered, Installer, Updater
from .table import IN_TRIAL, NOTHING_TO_DO, Event, Failure, Installed, Order, Step, Update, advance, concluded
from .window import Wait, require_time

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the runner uses of the rest of the agent.

    Attributes:
        updater: reads the repository and stages packages.
        installer: installs them.
        register: of all updates.
        backup: saves the configuration, and returns the backup's name.
        licensed: whether a license of this machine is valid now, by the way a POS application has it validated.
        health: what is wrong with the agent itself; empty if nothing is.
        withdrawn: asks the server whether it takes a directive back; False if the server cannot be reached.
    """

    updater: Updater
    installer: Installer
    register: Register
    backup: Callable[[], Awaitable[str]]
    licensed: Callable[[], bool]
    health: Callable[[], str]
    withdrawn: Callable[[int], Awaitable[bool]]


@dataclass(slots=True)
class Situation:
    """What of this run an effect looks at, and what it shows.

    Attributes:
        settings: of the configuration.
        traffic: validations.
        said: the last answer of the POS application.
        paused: the server, or an administrator, lets nothing begin; the text says who.
        progress: bytes that are done, and those in all.
        entered: when the step began in this run, monotonic seconds.
        fetched: SHA-256 of the package that is known to be staged.
        metadata_expires: of the repository, seconds since 1970 UTC; 0 before it was read.
        refreshed: when the repository was read, seconds since 1970 UTC; 0 before that.
        signed: when the first role of the repository's metadata ends that people sign, and its name; of a former run too.
    """

    settings: Settings
    traffic: Traffic
    said: Said | None = None
    paused: str = ""
    progress: tuple[int, int] = (0, 0)
    entered: float = 0.0
    fetched: str = ""
    metadata_expires: int = 0
    refreshed: int = 0
    signed: tuple[int, str] = (0, "")


class Effects:
    """Performs them.

    Args:
        machine: what they work with.
        situation: of this run.
    """

    def __init__(self, core: Core, machine: Machine, situation: Situation) -> None:
        self._core = core
        self._machine = machine
        self._now = situation
        self.table: dict[Step, Callable[[Update], Awaitable[Update]]] = {
            Step.OFFERED: self._offered,
            Step.WINDOW: self._window,
            Step.BACKED_UP: self._backed_up,
            Step.DOWNLOADED: self._downloaded,
            Step.STAGED: self._staged,
            Step.SWITCHED: self._switched,
            Step.PROVING: self._proving,
            Step.COMMITTED: self._concluded,
            Step.ROLLED_BACK: self._rolled_back,
        }

    # Before the switch

    async def _offered(self, update: Update) -> Update:
        order, now = _order(update), self._core.clock.now()
        installed = await self._installed(order.product)
        if installed is None:
            text = f"installer.toml has no product {order.product!r}"
            raise Declined("unknown-product", text, counted=False, final=True)
        update = msgspec.structs.replace(update, before=installed.version)
        self._core.audit.record(
            "ota.start", "ok", product=order.product, version=order.version, build_id=order.build_id, number=order.number,
            operator=order.operator, before=update.before,
        )  # fmt: skip
        if _active(order, installed) and not installed.in_trial:
            return msgspec.structs.replace(advance(update, Event.PRESENT), failure=NOTHING_TO_DO)
        log.info("OTA_START %s %s (build %s), wanted by %s", order.product, order.version, order.build_id, order.operator)
        if order.source == "package":
            return advance(update, Event.CHECKED)
        found = await self._machine.updater.refresh(order, now)
        same = (order.product, order.version, order.build_id, order.sha256)
        if (found.product, found.version, found.build_id, found.sha256) != same:
            raise Declined("differs", f"the repository names {found.product} {found.version} (build {found.build_id})")
        self._now.refreshed, self._now.metadata_expires = now, found.metadata_expires
        self._now.signed = (found.signed_until, found.signed_role)
        known = msgspec.structs.replace(order, notes=found.notes, length=found.length)
        return msgspec.structs.replace(advance(update, Event.CHECKED), order=known)

    async def _installed(self, product: str) -> Installed | None:
        """What the installer says of a product; None if it has none. Raises Hindered where it cannot say."""
        return known((await self._machine.installer.products()).get(product))

    async def _window(self, update: Update) -> Update:
        # In advance: when the window opens, the package is there.
        await self._fetch(_order(update))
        self.require_permission(update)
        licensed, well = self._machine.licensed(), not self._machine.health()
        backup = await self._machine.backup()
        return msgspec.structs.replace(advance(update, Event.SAVED), licensed=licensed, well=well, backup=backup)

    def require_permission(self, update: Update, *, consent: bool = True) -> None:
        """Raises `Wait` unless the installation may go on: pause, time and, if wanted, consent."""
        situation, now, mono = self._now, self._core.clock.now(), self._core.clock.monotonic()
        if situation.paused:
            raise Wait("paused", situation.paused, None)
        settings = situation.settings
        require_time(terms_of(_order(update), settings.notice_s), settings.calendar, now, urgent=update.urgent)
        if consent and not update.urgent:
            quiet, last = situation.traffic.quiet_s(mono), settings.last_passed(now)
            require_consent(settings.consent, situation.said, quiet, mono, last_passed=last)

    async def _fetch(self, order: Order) -> None:
        situation = self._now
        if situation.fetched == order.sha256 or order.source == "package":
            return

        def progress(done: int, total: int) -> None:
            situation.progress = (done, total)

        await self._machine.updater.stage(order, self._core.clock.now(), situation.settings.rate, progress)
        situation.fetched = order.sha256

    async def _backed_up(self, update: Update) -> Update:
        if closed := self._closed(update, consent=False):
            return closed
        # Not by memory: what was staged in advance may have been removed.
        self._now.fetched = ""
        await self._fetch(_order(update))
        return advance(update, Event.FETCHED)

    async def _downloaded(self, update: Update) -> Update:
        if closed := self._closed(update, consent=False):
            return closed
        order, situation = _order(update), self._now

        def progress(done: int, total: int) -> None:
            situation.progress = (done, total)

        await self._machine.installer.prepare(order.product, order.sha256, progress)
        return advance(update, Event.PREPARED)

    def _closed(self, update: Update, *, consent: bool) -> Update | None:
        """The update as it waits again, if the time is over or the shop needs the machine."""
        try:
            self.require_permission(update, consent=consent)
        except Wait as wait:
            log.info("the installation of %s waits again: %s", _order(update).product, wait)
            return advance(update, Event.CLOSED)
        return None

    async def _staged(self, update: Update) -> Update:
        order = _order(update)
        installed = await self._installed(order.product)
        if _on_trial(order, installed):
            # An earlier order to switch was carried out, and its answer was lost.
            return advance(update, Event.SWITCHED)
        if closed := self._closed(update, consent=True):
            return closed
        if order.number and order.source == "server" and await self._machine.withdrawn(order.number):
            raise Withdrawn("the server has withdrawn the directive")
        await self._core.audit.record_durably(
            "ota.switch", "begun", product=order.product, version=order.version, number=order.number, before=update.before
        )
        await self._machine.installer.switch(order.product, order.sha256)
        return advance(update, Event.SWITCHED)

    # The trial

    async def _switched(self, update: Update) -> Update:
        order = _order(update)
        if not _on_trial(order, await self._installed(order.product)):
            raise Wait("restart", f"{order.product} {order.version} is not active yet", None)
        return advance(update, Event.STARTED)

    async def _proving(self, update: Update) -> Update:
        order = _order(update)
        problem = await self._problem(update)
        if problem:
            if self._core.clock.monotonic() - self._now.entered < self._now.settings.trial_s:
                raise Wait("proof", problem, None)
            raise Declined("unproved", problem)
        if update.rehearsal:
            raise Declined(REHEARSAL, "the trial succeeded, and the rehearsal goes back on purpose", counted=False, final=True)
        await self._machine.installer.commit(order.product)
        return advance(update, Event.PROVED)

    async def _problem(self, update: Update) -> str:
        """Why the new version has not proved itself; empty if it has. A check that cannot be made is a problem."""
        proof = await self._machine.installer.prove(_order(update).product)
        if not proof.ok:
            return proof.text or "the health command failed"
        if update.licensed and not self._machine.licensed():
            return "no license of this machine is valid any more"
        # What was so before the update, the update has not done.
        return self._machine.health() if update.well else ""

    # The end

    async def _rolled_back(self, update: Update) -> Update:
        order, installer = _order(update), self._machine.installer
        switched = update.reached in (*IN_TRIAL, Step.COMMITTED)
        installed = (await installer.products()).get(order.product)
        if switched:  # else nothing was begun that would have to be undone
            known(installed)
        back = installed is not None and (_on_trial(order, installed) or (switched and _active(order, installed)))
        if installed is not None and (back or installed.begun):
            reason = "" if update.failure is None else f"{update.failure.code}: {update.failure.text}"
            try:
                self._note_config(order.product, await installer.roll_back(order.product, reason[:500]))
            except (Declined, Hindered) as declined:
                waits = isinstance(declined, Hindered) and declined.code not in FILES
                if waits or update.reached is not Step.COMMITTED or installed.in_trial:
                    raise
                # An administrator's wish, not a trial: the version that runs is a good one.
                failure = Failure(code=declined.code, text=declined.text[:500], counted=False, final=True)
                return await self._concluded(msgspec.structs.replace(update, reached=Step.IDLE, failure=failure))
            installed = await self._installed(order.product)
            if back and (installed is None or _active(order, installed)):
                raise Wait("restart", f"{order.product} is not back at the version before yet", None)
        if installed is not None and not update.before:
            update = msgspec.structs.replace(update, before=installed.version)
        return await self._concluded(update)

    def _note_config(self, product: str, text: str) -> None:
        """Records what of a product's configuration a rollback has changed: somebody may look for what was there."""
        if text:
            self._core.audit.record("ota.config", "restored", product=product, text=text)
            log.warning("the configuration of %s: %s", product, text)

    async def _concluded(self, update: Update) -> Update:
        now = self._core.clock.now()
        await self.enter(update, now)
        return concluded(update, now)

    async def enter(self, update: Update, now: int) -> None:
        """Writes the register's entry, and has the updater make room."""
        entry = entry_of(update, now)
        if entry is not None:
            await self._machine.register.write(entry)
            name = {"installed": "OTA_SUCCESS", "rolled-back": "OTA_ROLLBACK"}.get(entry.outcome, "OTA_FAILED")
            name = "OTA_ROLLBACK" if entry.outcome == "rehearsed" else name
            level = logging.INFO if name == "OTA_SUCCESS" else logging.WARNING
            log.log(level, "%s %s %s after %d s %s", name, entry.product, entry.version, entry.duration_s, entry.reason)
        try:
            await self._machine.updater.discard(())
        except (Hindered, Declined) as error:
            log.info("what was staged could not be removed: %s", error)
        self._now.fetched = ""


class Withdrawn(Exception):
    """The server takes the directive back. Nothing was switched."""


def _order(update: Update) -> Order:
    if update.order is None:
        raise RuntimeError(f"an update that is {update.step} must have an order")
    return update.order


def known(installed: Installed | None) -> Installed | None:
    """The same; raises Hindered where the installer cannot say what is active."""
    if installed is not None and installed.problem:
        raise Hindered(installed.code, installed.problem)
    return installed


def _active(order: Order, installed: Installed) -> bool:
    return (installed.version, installed.build_id) == (order.version, order.build_id)


def _on_trial(order: Order, installed: Installed | None) -> bool:
    return installed is not None and installed.in_trial and _active(order, installed)
