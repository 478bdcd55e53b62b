"""Declares the journal of updates, and what the server has to learn of a step. Pure, but for reading the file.

After a rollback the version before reads the journal that the version after has written. So what is unknown here is left out,
and does not make the rest unreadable (ADR 75).
"""

import logging
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .table import IN_TRIAL, Step, Update

log = logging.getLogger(__name__)

MAX_REPORTS = 16


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the server has to learn of a directive; members as in `contracts.contact.updates.Outcome`."""

    number: int
    state: str
    detail: Annotated[str, Meta(max_length=500)]
    at: int


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """The journal's file.

    Attributes:
        update: where the update is.
        known: the highest number of a directive that came.
        paused: who of the machine's administrators lets nothing begin; empty if nobody does.
        bench_since: since when this machine is a test bench, seconds since 1970 UTC; 0 if it is not one.
        reports: what the server has not acknowledged.
        signed_until, signed_role: when the first role of the repository's metadata ends that people sign, and its name.
    """

    update: Update = Update()
    known: int = 0
    paused: str = ""
    bench_since: int = 0
    reports: tuple[Report, ...] = ()
    signed_until: int = 0
    signed_role: str = ""


def read_journal(path: Path) -> Journal:
    """The journal as it is on the disk; an empty one where it cannot be read, for the installer knows what is installed."""
    try:
        return msgspec.convert(_known(msgspec.json.decode(path.read_bytes(), type=dict[str, Any])), Journal)
    except FileNotFoundError:
        return Journal()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        log.warning("%s could not be read; the installer is asked what is installed", path)
        return Journal()


def _known(members: dict[str, Any]) -> dict[str, Any]:
    """The members of a journal without steps that this version does not know: such an update begins again."""
    update = members.get("update")
    if not isinstance(update, dict):
        return members
    steps = tuple(Step)
    if update.get("reached", Step.IDLE) not in steps:
        update = {**update, "reached": Step.IDLE}
    if update.get("step", Step.IDLE) not in steps:
        log.warning("the journal of updates names the step %r of another version; the update begins again", update["step"])
        update = {**update, "step": Step.IDLE, "retry_at": 1}
    return {**members, "update": update}


def reports_after(reports: tuple[Report, ...], before: Update, after: Update, now: int) -> tuple[Report, ...]:
    """What the server has to learn once the update has moved on: the end of a directive, one each.

    Args:
        reports: what it had to learn before.
        before: the update before it has moved.
        after: the update by now.
        now: seconds since 1970 UTC.
    """
    order, failure = before.order, before.failure
    if order is None or not order.number or after.step is before.step or after.step not in (Step.IDLE, Step.LOCKED):
        return reports
    detail = "" if failure is None else f"{failure.code}: {failure.text}"
    if before.step is Step.COMMITTED:
        state, detail = "committed", ""
    elif after.step is Step.LOCKED:
        state = "locked"
    elif before.step in (Step.ROLLED_BACK, Step.LOCKED):
        if after.retry_at:
            return reports  # it is tried again
        # After unlocking it is not: as long as the server has the directive as locked, it takes no other one.
        state = "rolled-back" if before.reached in (*IN_TRIAL, Step.COMMITTED) else "refused"
    else:
        state, detail = "refused", "withdrawn"
    report = Report(number=order.number, state=state, detail=detail[:500], at=now)
    return (*(each for each in reports if each.number != order.number), report)[-MAX_REPORTS:]
