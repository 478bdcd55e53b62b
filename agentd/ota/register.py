"""Keeps the maintenance register: what became of each update, who wanted it, how long it took and why it failed.

Each entry is a record of the audit log's `ota` chain, which is kept for 12 months, before it is a line of the register's file.
The file is what `ota history` shows without unpacking archives; it can be made again from the log, and the log is what proves.
An entry that a kill repeats may be in the log twice, with the same `began`; in the file it is once.
"""

import asyncio
import logging
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from agentd.audit.log import AuditLog
from common.files import write_atomic

from .table import IN_TRIAL, Step, Update

log = logging.getLogger(__name__)

KEEP_DAYS = 366
MAX_ENTRIES = 512
"""Of the file; a machine that is updated each day has a year."""
QUARTER_DAYS = 92
"""A test bench rehearses at least as often (OT-08)."""

INSTALLED, ROLLED_BACK, FAILED, WITHDRAWN, REHEARSED = "installed", "rolled-back", "failed", "withdrawn", "rehearsed"
OUTCOMES = (INSTALLED, ROLLED_BACK, FAILED, WITHDRAWN, REHEARSED)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the register. Times are seconds since 1970 UTC.

    Attributes:
        time: when it ended.
        began: when the attempt began.
        duration_s: from there to the end, seconds.
        product, version, build_id: what was to be installed.
        before: the version that ran before; empty if unknown.
        number: of the directive; 0 without one.
        operator: who wanted it.
        outcome: one of `OUTCOMES`.
        reason: code and text of the failure; empty without one. One that was installed has one if nothing had to be done.
        attempts: that have failed in a row by then.
    """

    time: int
    began: int
    duration_s: int
    product: str
    version: str
    build_id: str
    before: str
    number: int
    operator: str
    outcome: str
    reason: Annotated[str, Meta(max_length=600)]
    attempts: int


def entry_of(update: Update, now: int) -> Entry | None:
    """The entry of an update that has come to its end; None if it names nothing.

    Args:
        update: at COMMITTED or ROLLED_BACK; at an earlier step it is being withdrawn.
        now: seconds since 1970 UTC.
    """
    order, failure = update.order, update.failure
    if order is None:
        return None
    switched = update.reached in (*IN_TRIAL, Step.COMMITTED)
    if update.step is Step.COMMITTED:
        outcome = INSTALLED
    elif update.step is not Step.ROLLED_BACK:
        outcome = WITHDRAWN
    elif switched:
        outcome = REHEARSED if failure is not None and failure.code == REHEARSAL else ROLLED_BACK
    else:
        outcome = FAILED
    counted = update.step is Step.ROLLED_BACK and failure is not None and failure.counted
    return Entry(
        time=now,
        began=update.since,
        duration_s=max(0, now - update.since),
        product=order.product,
        version=order.version,
        build_id=order.build_id,
        before=update.before,
        number=order.number,
        operator=order.operator,
        outcome=outcome,
        reason="" if failure is None or outcome == WITHDRAWN else f"{failure.code}: {failure.text}",
        attempts=update.attempts + counted,
    )


REHEARSAL = "rehearsal"
"""Code of the failure by which a rehearsal goes back on purpose."""


class Register:
    """The register's file and its records.

    Args:
        path: the file.
        audit: keeps the records.
    """

    def __init__(self, path: Path, audit: AuditLog) -> None:
        self._path = path
        self._audit = audit
        self.entries: tuple[Entry, ...] = self._read()

    def _read(self) -> tuple[Entry, ...]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=tuple[Entry, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            log.warning(
                "%s could not be read; the register begins again there, its former entries are in the audit log", self._path
            )
            return ()

    async def write(self, entry: Entry) -> None:
        """Writes an entry: to the log durably, then to the file. An entry that is in the file already is not written again.

        Raises:
            AuditUnavailable: the log does not take it, so nothing may follow.
            OSError: the file cannot be written.
        """
        if any(self._same(each, entry) for each in self.entries):
            return
        line = msgspec.to_builtins(entry)
        outcome = line.pop("outcome")
        del line["time"]  # the record has one of its own
        if outcome == INSTALLED:
            await self._audit.record_durably("ota.success", outcome, **line)
        elif outcome in (ROLLED_BACK, REHEARSED):
            await self._audit.record_durably("ota.rollback", outcome, **line)
        else:
            await self._audit.record_durably("ota.failed", outcome, **line)
        oldest = entry.time - KEEP_DAYS * 86_400
        kept = tuple(each for each in self.entries if each.time >= oldest)[-MAX_ENTRIES + 1 :]
        found = (*kept, entry)
        await asyncio.to_thread(write_atomic, self._path, msgspec.json.encode(found))
        self.entries = found

    @staticmethod
    def _same(one: Entry, other: Entry) -> bool:
        return (one.began, one.number, one.product, one.outcome) == (other.began, other.number, other.product, other.outcome)

    def last(self, outcome: str, product: str | None = None) -> Entry | None:
        """The last entry with an outcome, of a product or of any. What ran already was not installed."""
        found = [
            each
            for each in self.entries
            if each.outcome == outcome and product in (None, each.product) and not (outcome == INSTALLED and each.reason)
        ]
        return found[-1] if found else None

    def rehearsal_overdue(self, now: int, since: int) -> bool:
        """Whether a test bench should have rehearsed by now.

        Args:
            now: seconds since 1970 UTC.
            since: from when on it should, where it never has.
        """
        last = self.last(REHEARSED)
        return now - (since if last is None else last.time) > QUARTER_DAYS * 86_400
