"""Performs an update step by step: journal first, then the effect, then the next step. `table` says which step that is.

One update is under way at a time, in one task, which `tick` starts and which ends when it has to wait. What others want (a
directive, an administrator) interrupts it only at steps that can be repeated and have switched nothing.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agentd.audit.core import Core
from agentd.audit.log import AuditUnavailable
from agentd.base.alerts import OTA_ROLLED_BACK
from agentd.base.errors import Refused
from agentd.uplink.retry import delay
from common.files import is_full, no_trace, os_problem, write_atomic

from .consent import Answer, Traffic, said
from .effects import Effects, Machine, Situation, Withdrawn, known
from .hindrances import BUSY, DISK, NO_ROOM, UNREACHABLE, Hindrance
from .journal import MAX_REPORTS, Journal, Report, read_journal, reports_after
from .register import INSTALLED, REHEARSAL
from .settings import Settings
from .sides import Declined, Hindered
from .table import (
    DEADLINES,
    IN_TRIAL,
    TRANSITIONS,
    WAITS,
    Event,
    Failure,
    Installed,
    Order,
    Step,
    Update,
    advance,
    failed,
    offered,
    overdue,
    taken_up,
    undone,
)
from .window import Wait

log = logging.getLogger(__name__)

MAX_NOTES_TO_POS = 500
BASE_S, CAP_S = 30.0, 3600.0
"""Bounds of the pause after something could not be reached, seconds."""
LOOK_S, LOOK_FAR_S = 5.0, 60.0
"""How often a step that waits looks again: for the shop's consent or a restart, and for a time."""
WARN_S = 30 * 86_400
"""How long before its end a role of the update metadata raises an alert: people have to meet to sign it again."""
REPOSITORY_S, REPOSITORY_AGAIN_S = 86_400.0, 3600.0
"""How often the repository is looked at while nothing is to be installed, and after a look in vain: what people have signed
again must be known without an update. Seconds; the first look is within an hour of the start."""
KEEP_SPENT_S = 600.0
"""How often the running time at a step is kept: a till that is switched off each night has deadlines too."""

_INTERRUPTED = (*WAITS, Step.BACKED_UP, Step.DOWNLOADED)
"""The steps whose effect may be stopped in the middle: it is repeated, or nobody needs it any more."""


class UpdateRunner:
    """Runs the updates of one machine.

    Args:
        path: the journal, `ota.json`.
        machine: what it works with.
        settings: of the configuration.
        draw: random numbers between 0 and 1, for pauses.
        trace: called after each journaled step and each effect; a test stops the run there.

    Attributes:
        situation: of this run.
        waits: what the update waits for; None if it does not.
        problem: why the last attempt at an effect failed; empty if it did not.
        hindrance: what keeps an effect from happening, until that effect succeeds; None without one.
        server_paused: an operator of the license server lets nothing begin.
    """

    def __init__(
        self,
        core: Core,
        path: Path,
        machine: Machine,
        settings: Settings,
        draw: Callable[[], float] = random.random,
        trace: Callable[[str], None] = no_trace,
    ) -> None:
        self._core = core
        self._path = path
        self._machine = machine
        self._draw = draw
        self._trace = trace
        now = core.clock.monotonic()
        self.situation = Situation(settings, Traffic(now), entered=now)
        self._effects = Effects(core, machine, self.situation)
        self.waits: Wait | None = None
        self.problem = ""
        self.hindrance: Hindrance | None = None
        self._hindered_at = Step.IDLE
        self.server_paused = False
        self._journal = read_journal(path)
        self.situation.signed = (self._journal.signed_until, self._journal.signed_role)
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._effect: asyncio.Task[Update] | None = None
        self._taken_up = False
        self._tried = False
        self._again_at = now
        self._kept_at = now
        self._look_at = now + REPOSITORY_AGAIN_S * draw()
        self._abort: Failure | None = None
        self.running: dict[str, Installed] = {}
        self._show_pause()

    # What others see

    @property
    def update(self) -> Update:
        """Where the update is."""
        return self._journal.update

    @property
    def known(self) -> int:
        """The highest number of a directive that came."""
        return self._journal.known

    @property
    def paused(self) -> str:
        """Who lets nothing begin; empty if nobody does."""
        return self.situation.paused

    def reports(self) -> tuple[Report, ...]:
        """What the server has to learn, the update under way among it."""
        update, order = self.update, self.update.order
        if order is None or not order.number or update.step is Step.IDLE:
            return self._journal.reports
        if update.step is Step.LOCKED:
            state, detail = "locked", "" if update.failure is None else update.failure.text
        else:
            state, detail = "progress", update.step.value
        current = Report(number=order.number, state=state, detail=detail, at=self._core.clock.now())
        others = tuple(each for each in self._journal.reports if each.number != order.number)
        return (*others[-(MAX_REPORTS - 1) :], current)

    @property
    def ended(self) -> tuple[Report, ...]:
        """How directives ended that the server has not acknowledged."""
        return self._journal.reports

    async def installed(self) -> dict[str, Installed]:
        """What runs, by product: what the installer says now, or said last."""
        try:
            self.running = await self._machine.installer.products()
        except (Hindered, Declined) as error:
            log.info("the installer could not be asked what runs: %s", error)
        return self.running

    def last_installed(self) -> int:
        """When the last update was committed, seconds since 1970 UTC; 0 if the register has none."""
        found = self._machine.register.last(INSTALLED)
        return 0 if found is None else found.time

    def signed_role_ends(self) -> tuple[int, str] | None:
        """When the first role of the update metadata ends that people sign, and its name, if that is within `WARN_S`."""
        until, role = self.situation.signed
        return (until, role) if until and until - self._core.clock.now() <= WARN_S else None

    def rehearsal_overdue(self) -> bool:
        """Whether this machine is a test bench that has not rehearsed in a quarter."""
        since = self._journal.bench_since
        return bool(since) and self._machine.register.rehearsal_overdue(self._core.clock.now(), since)

    # Keeping it going

    def tick(self) -> None:
        """Goes on if something can go on; called every few seconds. Waits for nothing."""
        self.situation.traffic.note(self._core.counters.validations, self._core.clock.monotonic())
        if self._task is not None and not self._task.done():
            return
        if self._core.clock.monotonic() < self._again_at:
            return
        self._task = asyncio.get_running_loop().create_task(self._run_logged())

    async def _run_logged(self) -> None:
        try:
            await self.run()
        except (AuditUnavailable, OSError) as error:
            self._hinder_by(self.update, error)
        except Exception:  # an update that fails in an unexpected way must not end the agent
            log.exception("the update could not go on")
            self._pause(CAP_S)

    async def stop(self) -> None:
        """Stops what is under way. The journal knows where to go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def run(self) -> None:
        """Goes on until there is something to wait for."""
        while await self._turn():
            pass

    async def _turn(self) -> bool:
        """One effect; returns whether another one may follow at once."""
        before = self.update
        try:
            await self._note_bench()
            if not self._taken_up:
                await self._take_up()
                self.hindrance = None
                return True
            if before.step in (Step.IDLE, Step.LOCKED):
                return await self._begin_again()
            if self._abort is not None and before.step in IN_TRIAL:
                failure, self._abort = self._abort, None
                await self.keep(failed(before, failure))
                return True
            if self._late(before):
                await self.keep(failed(before, self._lateness(before)))
                return True
            self._tried = True
            self._effect = asyncio.get_running_loop().create_task(self._perform(before))
            after = await self._effect
            if self.update is before:
                await self.keep(after)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return False  # `interrupt`: who called it moves the update on
        except Wait as wait:
            return await self._wait(before, wait)
        except Withdrawn as withdrawn:
            await self._withdraw(str(withdrawn))
            return True
        except Hindered as hindered:
            self._hinder(before, hindered.code, hindered.text)
            await self._keep_spent()
            return False
        except Declined as declined:
            return await self._declined(before, declined)
        except (AuditUnavailable, OSError) as error:
            self._hinder_by(before, error)
            return False
        finally:
            self._effect = None
        self._unhinder(before)
        return True

    def _hinder(self, update: Update, code: str, text: str) -> None:
        """Notes what keeps an effect from happening; it is tried again, after a pause that grows."""
        found, now = self.hindrance, self._core.clock.now()
        again = found is not None and self._hindered_at is update.step
        self.hindrance = found.again(code, text) if found is not None and again else Hindrance(code, text, now)
        self._hindered_at, self.problem = update.step, text if code in (UNREACHABLE, BUSY) else f"{text} ({code})"
        log.warning("the update waits: %s (%s)", text, code)
        self._pause(max(LOOK_S, delay(self.hindrance.tries, self._draw(), BASE_S, CAP_S)))

    def _hinder_by(self, update: Update, error: Exception) -> None:
        """The same for the agent's own disk, which is full or fails."""
        if isinstance(error, OSError):
            self._hinder(update, NO_ROOM if is_full(error) else DISK, os_problem(error))
        else:
            self._hinder(update, DISK, str(error))

    def _unhinder(self, update: Update) -> None:
        """Notes that the effect of a step is possible."""
        if update.step is self._hindered_at:
            self.hindrance = None

    async def _perform(self, update: Update) -> Update:
        after = await self._effects.table[update.step](update)
        self._trace(f"effect: {update.step.value}")
        return after

    async def _wait(self, before: Update, wait: Wait) -> bool:
        if wait.code == "ended":
            await self._withdraw("it was not installed before the directive ended")
            return True
        self.waits, self.problem = wait, ""
        self._unhinder(before)
        now = self._core.clock.now()
        if wait.code in ("consent", "restart", "proof"):
            self._pause(min(LOOK_S, self.situation.settings.trial_s) if wait.code == "proof" else LOOK_S)
        else:
            self._pause(LOOK_FAR_S if wait.until is None else min(LOOK_FAR_S, max(1.0, wait.until - now)))
        await self._keep_spent()
        return False

    async def _declined(self, before: Update, declined: Declined) -> bool:
        self.problem = str(declined)
        if Event.FAILED not in TRANSITIONS[before.step]:
            log.error("the update cannot end: %s", declined)
            self._pause(LOOK_FAR_S)
            return False
        failure = Failure(code=declined.code, text=declined.text[:500], counted=declined.counted, final=declined.final)
        await self.keep(failed(before, failure))
        return True

    def _late(self, update: Update) -> bool:
        """Whether the step's deadline has passed. Before the switch an effect is tried once in each run, whatever the time: a
        till that was off over the deadline may succeed, or learns what hinders it."""
        if not self._tried and update.step not in IN_TRIAL:
            return False
        return overdue(update, self._core.clock.monotonic() - self.situation.entered)

    def _lateness(self, update: Update) -> Failure:
        hindered = self.hindrance is not None and self._hindered_at is update.step
        counted = update.step not in WAITS and not hindered
        hours = (DEADLINES[update.step] or 0) / 3600
        why = self.problem or ("" if self.waits is None else self.waits.text)
        return Failure(code="deadline", text=f"it was {update.step} for {hours:g} h: {why}"[:500], counted=counted)

    def _pause(self, seconds: float) -> None:
        self._again_at = self._core.clock.monotonic() + seconds

    async def keep(self, update: Update, **more: object) -> None:
        """Journals where the update is from now on, and what the server has to learn of it."""
        async with self._lock:
            before = self.update
            reports = reports_after(self._journal.reports, before, update, self._core.clock.now())
            until, role = self.situation.signed
            kept = msgspec.structs.replace(self._journal, update=update, reports=reports, signed_until=until, signed_role=role)
            await self._store(msgspec.structs.replace(kept, **more))
            if update.step is before.step:
                return
            mono = self._core.clock.monotonic()
            self.situation.entered = self._kept_at = self._again_at = mono
            self.situation.progress, self.waits, self.problem, self._tried = (0, 0), None, "", False
            if update.step in (Step.IDLE, Step.LOCKED) and not update.retry_at:
                self.hindrance = None  # there is nothing left to hinder
            self._record(before, update)
        self._trace(f"journal: {update.step.value}")

    async def _store(self, journal: Journal) -> None:
        # In a thread: it waits for the disk twice, and no validation waits with it.
        await asyncio.to_thread(write_atomic, self._path, msgspec.json.encode(journal))
        self._journal = journal

    async def _keep_spent(self) -> None:
        mono = self._core.clock.monotonic()
        if mono - self._kept_at < KEEP_SPENT_S:
            return
        spent = self.update.spent + int(mono - self.situation.entered)
        async with self._lock:
            await self._store(msgspec.structs.replace(self._journal, update=msgspec.structs.replace(self.update, spent=spent)))
        self.situation.entered = self._kept_at = mono

    def _record(self, before: Update, after: Update) -> None:
        order = after.order
        if order is None:
            return
        self._core.audit.record("ota.progress", "ok", product=order.product, number=order.number, step=after.step.value)
        log.info("OTA_PROGRESS %s %s: %s", order.product, order.version, after.step.value)
        if before.step is Step.ROLLED_BACK and before.reached in (*IN_TRIAL,) and before.failure is not None:
            if before.failure.code != REHEARSAL:
                text = f"the update to {order.product} {order.version} was rolled back: {before.failure.text}"
                self._core.audit.raise_alert(OTA_ROLLED_BACK, text, product=order.product, text=before.failure.text)
        if after.step is Step.LOCKED:
            self._core.audit.record("ota.locked", "ok", product=order.product, attempts=after.attempts)
            log.error("OTA_LOCKED after %d failed attempts; an administrator has to unlock updates", after.attempts)

    # Taking up

    async def _take_up(self) -> None:
        """Compares the journal with what is installed. A trial that the journal does not know is ended: nobody watches it."""
        self.running = await self._machine.installer.products()
        update = self.update
        order = update.order
        product = "" if order is None else order.product
        installed = self.running.get(product)
        if update.step in (Step.STAGED, *IN_TRIAL):
            known(installed)  # what cannot be said now is no sign that the installer went back
        after = taken_up(update, installed)
        if after is not update:
            await self.keep(after)
        mine = after.step in (Step.STAGED, *IN_TRIAL, Step.ROLLED_BACK)
        for name, installed in self.running.items():
            if installed.in_trial and not (mine and name == product):
                await self._end_unknown(name, installed)
        self._taken_up = True
        self._trace("taken up")

    async def _end_unknown(self, product: str, installed: Installed) -> None:
        failure = Failure(code="journal-lost", text="the agent's journal does not know this trial", counted=False)
        order = Order(
            number=0, product=product, version=installed.version, build_id=installed.build_id, sha256="", operator="agent"
        )
        now = self._core.clock.now()
        log.warning("%s %s is on trial, and the journal does not know why: it is taken back", product, installed.version)
        await self._machine.installer.roll_back(product, f"{failure.code}: {failure.text}")
        await self._effects.enter(undone(Update(), order, failure, now), now)
        update = self.update
        if update.step is Step.IDLE and update.retry_at and update.order is not None and update.order.product == product:
            # What was switched is used up: it would be refused as carried out before, and count as a failed attempt.
            await self.keep(msgspec.structs.replace(update, retry_at=0, done=max(update.done, update.order.number)))

    async def _begin_again(self) -> bool:
        update, now = self.update, self._core.clock.now()
        if update.step is Step.IDLE and update.order is not None and 0 < update.retry_at <= now and not self.situation.paused:
            await self.keep(offered(update, update.order, now))
            return True
        self._pause(LOOK_S)
        if self._core.clock.monotonic() >= self._look_at:
            await self._look()
        return False

    async def _look(self) -> None:
        """Asks the updater how long the repository's metadata is valid. That it cannot say so hinders nothing."""
        mono, now, situation = self._core.clock.monotonic(), self._core.clock.now(), self.situation
        self._look_at = mono + REPOSITORY_AGAIN_S
        try:
            seen = await self._machine.updater.look(now)
        except (Hindered, Declined) as error:
            log.info("the update repository could not be looked at: %s", error)
            return
        self._look_at = mono + REPOSITORY_S * (0.9 + 0.2 * self._draw())
        situation.refreshed, situation.metadata_expires = now, seen.metadata_expires
        situation.signed = until, role = seen.signed_until, seen.signed_role
        if (until, role) != (self._journal.signed_until, self._journal.signed_role):
            async with self._lock:
                await self._store(msgspec.structs.replace(self._journal, signed_until=until, signed_role=role))

    def look_soon(self) -> None:
        """Has the repository looked at with the next tick, if nothing is under way."""
        self._look_at = self._again_at = self._core.clock.monotonic()

    # What the server wants

    async def hear(self, order: Order | None, withdraws: int | None, *, paused: bool) -> None:
        """Takes in the server's directive: the one that counts now, each time that the server was asked.

        Args:
            order: None if the server orders nothing, or only withdraws.
            withdraws: number of a directive that is void.
            paused: an operator of the server lets nothing begin.
        """
        self.server_paused = paused
        self._show_pause()
        update, current = self.update, self.update.order
        if withdraws is not None:
            await self._know(max(self.known, withdraws))
        pending = current is not None and current.source == "server" and (update.step in _INTERRUPTED or update.retry_at > 0)
        if pending and current is not None and (order is None or order.number != current.number):
            if order is None or order.number > current.number:
                await self.interrupt()
                await self._withdraw("the server has taken it back" if order is None else "a newer directive has come")
        if order is None:
            return
        await self._know(order.number)
        update = self.update
        if update.step is Step.IDLE and order.number > update.done and not update.retry_at:
            await self.keep(offered(update, order, self._core.clock.now()))

    async def acknowledged(self, numbers: tuple[int, ...], said: tuple[Report, ...]) -> None:
        """Forgets what the server has noted.

        Args:
            numbers: of directives.
            said: what it was told: an update that has ended since is still to be reported, whatever the server says it knows.
        """
        left = tuple(each for each in self._journal.reports if each.number not in numbers or each not in said)
        if left != self._journal.reports:
            async with self._lock:
                await self._store(msgspec.structs.replace(self._journal, reports=left))

    async def hand_over(self, number: int, directive: str, key_set: str) -> None:
        """Has the installer remember a withdrawal. It counts as known only then, so the server sends it again until then.

        Args:
            number: of the directive that withdraws another one.
            directive: as the server signed it.
            key_set: as in `table.Order`.

        Raises:
            Hindered, Declined: the installer does not remember it.
            OSError: the journal cannot be written.
        """
        await self._machine.installer.withdraw(directive, key_set)
        await self._know(number)

    async def _know(self, number: int) -> None:
        if number > self.known:
            async with self._lock:
                await self._store(msgspec.structs.replace(self._journal, known=number))

    async def _withdraw(self, why: str) -> None:
        update, now = self.update, self._core.clock.now()
        log.info("the update is not installed: %s", why)
        if Event.WITHDRAWN not in TRANSITIONS[update.step]:
            done = max(update.done, 0 if update.order is None else update.order.number)
            await self.keep(msgspec.structs.replace(update, retry_at=0, done=done))
            return
        await self._effects.enter(update, now)
        await self.keep(advance(update, Event.WITHDRAWN))

    async def interrupt(self) -> None:
        """Stops the effect under way, if it may be stopped.

        Raises:
            Refused: it may not.
        """
        if self.update.step not in (*_INTERRUPTED, Step.IDLE, Step.LOCKED):
            raise Refused(f"the update is {self.update.step.value}: wait until it has ended ('license-agent-cli ota status')")
        self._again_at = self._core.clock.monotonic()
        if self._effect is not None:
            self._effect.cancel()
            with contextlib.suppress(asyncio.CancelledError, Wait, Hindered, Declined, Withdrawn, OSError, AuditUnavailable):
                await self._effect

    def try_again(self) -> None:
        """Ends the pause after what hindered the update."""
        self._again_at = self._core.clock.monotonic()
        self.tick()

    def abort(self, failure: Failure) -> None:
        """Has the trial under way fail, at the next look at it."""
        self._abort = failure
        self._again_at = self._core.clock.monotonic()

    async def pause(self, who: str) -> None:
        """Lets nothing begin on this machine from now on; an empty name ends that. What is switched is finished."""
        async with self._lock:
            await self._store(msgspec.structs.replace(self._journal, paused=who))
        self._show_pause()
        self._again_at = self._core.clock.monotonic()

    def reconfigure(self, settings: Settings) -> None:
        """Goes by other settings from the next look on."""
        self.situation.settings = settings
        self._again_at = self._core.clock.monotonic()

    async def _note_bench(self) -> None:
        """Keeps since when this machine is a test bench. Raises OSError."""
        bench, since = self.situation.settings.test_bench, self._journal.bench_since
        if bench != bool(since):
            async with self._lock:
                now = self._core.clock.now() if bench else 0
                await self._store(msgspec.structs.replace(self._journal, bench_since=now))

    def consent(self, answer: str, busy_s: float) -> dict[str, Any]:
        """Takes a POS application's answer ("" for none) and says what waits for it; the reply to `ota_consent`."""
        if answer:
            self.answered(Answer(answer), busy_s)
        update, order = self.update, self.update.order
        waits = self.waits
        pending = order is not None and update.step is Step.WINDOW
        shown = order if pending else None
        return {
            "pending": pending,
            "product": None if shown is None else shown.product,
            "version": None if shown is None else shown.version,
            "notes": None if shown is None else shown.notes[:MAX_NOTES_TO_POS],
            "not_before": None if shown is None or waits is None else waits.until,
        }

    def answered(self, answer: Answer, for_s: float) -> None:
        """Notes what a POS application said; `for_s` is how long it is busy, seconds."""
        self.situation.said = said(answer, for_s, self._core.clock.monotonic())
        # Only where the shop's word is what the update waits for: a POS application must not undo the pauses that a server or a
        # repository out of reach is given, by saying it each second, or each till of a fleet once.
        if answer is Answer.READY and self.hindrance is None and self.waits is not None and self.waits.code == "consent":
            self._again_at = self._core.clock.monotonic()

    def _show_pause(self) -> None:
        if self._journal.paused:
            self.situation.paused = f"{self._journal.paused} has paused updates on this machine"
        else:
            self.situation.paused = "the license server has paused updates" if self.server_paused else ""
