"""Defines the steps of an update as a table. Every change of step is decided here; `runner` performs the effects.

    IDLE         nothing to do
    OFFERED      a directive is here: ask the updater whether the repository holds what it names
    WINDOW       fetch the package in advance; wait for the notice, the window and the shop's consent; save the configuration
    BACKED_UP    download and verify, unless that was done in advance
    DOWNLOADED   have the installer judge the package again and unpack it beside the running version
    STAGED       ask the server whether it withdraws the directive, then have the installer switch
    SWITCHED     have the new version take its trial
    PROVING      check that it works, and have the installer commit it
    COMMITTED    write the register
    ROLLED_BACK  have the installer go back if anything was switched, and write the register
    LOCKED       wait for an administrator: more than two attempts have failed

Each step is journaled before its effect, and every effect may be repeated: after a kill, the next process continues with the
step that the journal names. What is installed, the installer knows; where the journal contradicts it, `taken_up` goes by the
installer.

An updater, a network or an installer that cannot be reached needs no event: the step stays and its effect is tried again, until
the step's deadline. A deadline that passes is no failed attempt while nothing was tried in vain but the network.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from common.statetable import Table

MAX_FAILED = 2
"""Failed attempts in a row that do not lock updates yet (OT-07)."""
MAX_STARTS = 3
"""Starts of the agent during one trial. One more, and the trial has failed: the new version may keep it from running."""
RETRY_S = 3600
"""Pause after a failed attempt before the same directive is tried again, seconds."""

HOUR, DAY = 3600, 86_400

Text = Annotated[str, Meta(max_length=500)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Step(StrEnum):
    """The step that an update is at."""

    IDLE = "idle"
    OFFERED = "offered"
    WINDOW = "window"
    BACKED_UP = "backed-up"
    DOWNLOADED = "downloaded"
    STAGED = "staged"
    SWITCHED = "switched"
    PROVING = "proving"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled-back"
    LOCKED = "locked"


class Event(StrEnum):
    """What can happen to an update."""

    OFFER = "offer"
    """A directive came, or an administrator handed a package over."""
    CHECKED = "checked"
    """The repository holds what the directive names, and both agree."""
    PRESENT = "present"
    """What the directive names runs already."""
    SAVED = "saved"
    """The installation may begin, and the configuration is saved."""
    FETCHED = "fetched"
    """The package is verified and on disk."""
    PREPARED = "prepared"
    """The installer has judged it and unpacked it."""
    CLOSED = "closed"
    """The installation may not begin any more: the window has closed, or the shop needs the machine."""
    SWITCHED = "switched"
    STARTED = "started"
    """The new version runs its trial."""
    PROVED = "proved"
    """It works, and the installer has committed it."""
    FAILED = "failed"
    """The attempt failed, or its deadline passed."""
    WITHDRAWN = "withdrawn"
    """The server, or a newer directive, has taken the directive back. Nothing was switched."""
    UNDO = "undo"
    """An administrator goes back to the version before the running one."""
    LOGGED = "logged"
    EXHAUSTED = "exhausted"
    """One attempt too many has failed."""
    UNLOCKED = "unlocked"


_BEFORE_SWITCH = {Event.WITHDRAWN: Step.IDLE, Event.FAILED: Step.ROLLED_BACK}

TRANSITIONS: dict[Step, dict[Event, Step]] = {
    Step.IDLE: {Event.OFFER: Step.OFFERED, Event.UNDO: Step.ROLLED_BACK},
    Step.OFFERED: {Event.CHECKED: Step.WINDOW, Event.PRESENT: Step.COMMITTED, **_BEFORE_SWITCH},
    Step.WINDOW: {Event.SAVED: Step.BACKED_UP, **_BEFORE_SWITCH},
    Step.BACKED_UP: {Event.FETCHED: Step.DOWNLOADED, Event.CLOSED: Step.WINDOW, **_BEFORE_SWITCH},
    Step.DOWNLOADED: {Event.PREPARED: Step.STAGED, Event.CLOSED: Step.WINDOW, **_BEFORE_SWITCH},
    Step.STAGED: {Event.SWITCHED: Step.SWITCHED, Event.CLOSED: Step.WINDOW, **_BEFORE_SWITCH},
    Step.SWITCHED: {Event.STARTED: Step.PROVING, Event.FAILED: Step.ROLLED_BACK},
    Step.PROVING: {Event.PROVED: Step.COMMITTED, Event.FAILED: Step.ROLLED_BACK},
    Step.COMMITTED: {Event.LOGGED: Step.IDLE},
    Step.ROLLED_BACK: {Event.LOGGED: Step.IDLE, Event.EXHAUSTED: Step.LOCKED},
    Step.LOCKED: {Event.UNLOCKED: Step.IDLE},
}
step = Table("an update", TRANSITIONS).step

DEADLINES: dict[Step, int | None] = {
    Step.IDLE: None,
    Step.OFFERED: 7 * DAY,
    Step.WINDOW: 90 * DAY,
    Step.BACKED_UP: 2 * DAY,
    Step.DOWNLOADED: 2 * HOUR,
    Step.STAGED: 2 * HOUR,
    Step.SWITCHED: HOUR // 2,
    Step.PROVING: HOUR // 2,
    Step.COMMITTED: None,
    Step.ROLLED_BACK: None,
    Step.LOCKED: None,
}
"""How long an update may stay at a step, seconds of running time. The last three end by what the agent or a person does; there
is nothing that a passed deadline could lead to."""

IN_TRIAL = (Step.SWITCHED, Step.PROVING)
"""The steps at which the new version is active and not committed."""
WAITS = (Step.OFFERED, Step.WINDOW)
"""The steps at which nothing has begun that a person would notice."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be installed.

    Attributes:
        number: of the directive.
        product, version, build_id: what.
        sha256: of the package, hex.
        directive: as the server signed it; the updater and the installer judge it themselves.
        key_set: with the key that signed it, as the server published it, after those that lead to it; one a line.
        rollout: id; empty outside a rollout.
        source: `server`, or `package` for a file that an administrator handed over.
        operator: who asked for it, in the register's words.
        received: when it came, seconds since 1970 UTC.
        not_before, not_after: when it may be installed, seconds since 1970 UTC.
        notice_until: installed on its own not before this.
        zone, days, start, end: the window of the directive; empty if it has none.
        notes: release notes, once the repository has been asked.
        length: of the package, bytes, once the repository has been asked.
    """

    number: Count
    product: str
    version: str
    build_id: str
    sha256: str
    directive: str = ""
    key_set: str = ""
    rollout: str = ""
    source: str = "server"
    operator: str = "server"
    received: Count = 0
    not_before: Count = 0
    not_after: Count = 0
    notice_until: Count = 0
    zone: str = ""
    days: tuple[str, ...] = ()
    start: str = ""
    end: str = ""
    notes: str = ""
    length: Count = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why an attempt failed.

    Attributes:
        code: a word that the updater, the installer or the runner uses for it.
        text: for people.
        counted: whether it is a failed attempt; network errors and an administrator's will are none.
        final: whether the same directive is not tried again.
    """

    code: str
    text: Text
    counted: bool = True
    final: bool = False


NOTHING_TO_DO = Failure(code="present", text="this build ran already, nothing was installed", counted=False)
"""Of an update that ends as installed without an installation. Who orders again what runs must not make it look like one, nor
begin the count of failed attempts again."""


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """Where an update is, as the journal holds it.

    Attributes:
        step: the next one to perform.
        order: what shall be installed; None before the first update.
        since: when the attempt began, seconds since 1970 UTC.
        spent: running time at this step in earlier runs, seconds.
        reached: the step at which the attempt failed; IDLE otherwise.
        failure: why it failed; why the last one failed, at IDLE and LOCKED; `NOTHING_TO_DO`.
        attempts: that failed in a row and are counted.
        starts: of the agent during this trial.
        before: the version that ran when the attempt began; empty before the installer was asked.
        done: number of the last directive that is finished, one way or the other.
        retry_at: when the directive is tried again after a failed attempt, seconds since 1970 UTC; 0 if it is not.
        urgent: an administrator wants it now, whatever window and notice say.
        rehearsal: the trial ends by going back on purpose.
        licensed: a license of this machine was valid when the installation began, so one must be after it.
        well: the agent itself worked then, so it must after it.
        backup: name of the configuration's backup; empty before there is one.
    """

    step: Step = Step.IDLE
    order: Order | None = None
    since: Count = 0
    spent: Count = 0
    reached: Step = Step.IDLE
    failure: Failure | None = None
    attempts: Count = 0
    starts: Count = 0
    before: str = ""
    done: Count = 0
    retry_at: Count = 0
    urgent: bool = False
    rehearsal: bool = False
    licensed: bool = False
    well: bool = False
    backup: str = ""


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What the installer says of a product.

    Attributes:
        version, build_id: what is active; empty if nothing is.
        in_trial: whether it is active and not committed.
        begun: whether the installer has begun an update of it, which a rollback ends.
        previous: the version that a rollback leads to; empty if there is none.
        code, problem: why the installer cannot say what is active, and its word for it; empty if it can.
    """

    version: str
    build_id: str = ""
    in_trial: bool = False
    begun: bool = False
    previous: str = ""
    code: str = ""
    problem: str = ""


def advance(update: Update, event: Event) -> Update:
    """The update after an event that needs no more than its name; each new step begins with a clock of its own.

    Raises:
        UnknownTransition: the table does not know the event at this step.
    """
    after = step(update.step, event)
    if event is Event.WITHDRAWN:
        number = update.order.number if update.order is not None else 0
        return msgspec.structs.replace(update, step=after, spent=0, done=max(update.done, number), retry_at=0, urgent=False)
    return msgspec.structs.replace(update, step=after, spent=0)


def offered(update: Update, order: Order, now: int, *, urgent: bool = False, rehearsal: bool = False) -> Update:
    """An attempt to install what an order names.

    Args:
        now: seconds since 1970 UTC.
        urgent: an administrator wants it now.
        rehearsal: and wants it to go back at the end.

    Raises:
        UnknownTransition: an update is under way, or updates are locked.
    """
    fresh = advance(update, Event.OFFER)
    return msgspec.structs.replace(
        fresh,
        order=order, since=now, reached=Step.IDLE, failure=None, starts=0, before="", retry_at=0, urgent=urgent,
        rehearsal=rehearsal, licensed=False, well=False, backup="",
    )  # fmt: skip


def failed(update: Update, failure: Failure) -> Update:
    """The update after a failed attempt: what was switched is undone next.

    Raises:
        UnknownTransition: the step has nothing that could fail.
    """
    return msgspec.structs.replace(advance(update, Event.FAILED), reached=update.step, failure=failure)


def undone(update: Update, order: Order, failure: Failure, now: int) -> Update:
    """An administrator's way back from the running version, which `order` names; or the way back from a trial that the journal
    knows nothing of.

    Raises:
        UnknownTransition: an update is under way, or updates are locked.
    """
    back = advance(update, Event.UNDO)
    return msgspec.structs.replace(
        back,
        order=order, since=now, reached=Step.COMMITTED, failure=failure, starts=0, before="", retry_at=0, urgent=False,
        rehearsal=False, backup="",
    )  # fmt: skip


def concluded(update: Update, now: int) -> Update:
    """The update after its register entry was written: nothing to do, another attempt later, or locked.

    Raises:
        UnknownTransition: it is not at its end.
    """
    order = update.order
    done = max(update.done, 0 if order is None else order.number)
    if update.step is Step.COMMITTED:
        fresh = advance(update, Event.LOGGED)
        attempts = 0 if update.failure is None else update.attempts
        return msgspec.structs.replace(fresh, attempts=attempts, failure=None, done=done, starts=0, urgent=False)
    failure = update.failure or Failure(code="unknown", text="the reason was lost")
    attempts = update.attempts + failure.counted
    if attempts > MAX_FAILED:
        locked = advance(update, Event.EXHAUSTED)
        return msgspec.structs.replace(locked, attempts=attempts, done=done, urgent=False)
    after = advance(update, Event.LOGGED)
    # What was switched is used up: the installer carries a directive out once. The server gives another.
    again = not failure.final and update.reached not in (*IN_TRIAL, Step.COMMITTED)
    return msgspec.structs.replace(
        after, attempts=attempts, done=update.done if again else done, retry_at=now + RETRY_S if again else 0, urgent=False
    )


def unlocked(update: Update) -> Update:
    """The update after an administrator has looked into it: attempts are counted from zero.

    Raises:
        UnknownTransition: updates are not locked.
    """
    return msgspec.structs.replace(advance(update, Event.UNLOCKED), attempts=0, retry_at=0)


def overdue(update: Update, running: float) -> bool:
    """Whether the step's deadline has passed.

    Args:
        running: seconds that the update has been at this step in this run.
    """
    most = DEADLINES[update.step]
    return most is not None and update.spent + running > most


def taken_up(update: Update, installed: Installed | None) -> Update:
    """The update as it continues after a restart of the agent, given what the installer says of the order's product.

    Args:
        installed: None if the installer does not know the product.
    """
    order = update.order
    if order is None or update.step in (Step.IDLE, Step.ROLLED_BACK, Step.LOCKED):
        return update
    active = installed is not None and (installed.version, installed.build_id) == (order.version, order.build_id)
    in_trial = installed is not None and installed.in_trial
    if update.step is Step.COMMITTED:
        # The installer commits before this is journaled; where it has not, an older journal has come back.
        return msgspec.structs.replace(update, step=Step.PROVING, spent=0) if active and in_trial else update
    if update.step is Step.STAGED and active and in_trial:
        # Killed after the switch and before its record: an agent's own update always ends so.
        update = advance(update, Event.SWITCHED)
    if update.step not in IN_TRIAL:
        return update
    if active and not in_trial:
        # The installer has committed it; only the record is missing.
        return msgspec.structs.replace(update, step=Step.COMMITTED, spent=0)
    if not active:
        text = (
            "the installer went back by itself" if installed is not None else "the installer does not know the product any more"
        )
        return failed(update, Failure(code="went-back", text=text))
    started = msgspec.structs.replace(update, starts=update.starts + 1)
    if started.starts > MAX_STARTS:
        text = f"the agent was started more than {MAX_STARTS} times during the trial"
        return failed(started, Failure(code="restarts", text=text))
    return started
