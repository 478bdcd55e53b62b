"""Decides which events the audit log records in full, which it only counts, and when records reach the disk.

Refusals and the first sight of a license are always full records. Each UID has a budget for other validations; beyond it the
log counts them and writes the counts once a minute. All records of one loop tick go out in one write, before the replies that
depend on them: what was answered survives kill -9. Records of changes are fsynced before the change.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from agentd.base.alerts import AUDIT_BUDGET, AUDIT_FILE, Alert, Severity
from agentd.base.caller import Caller
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AuditConfig
from audittrail.chain import CHECKPOINT, SEGMENT_CLOSED, Chain, Heads, fold_checkpoint, heads_digest, heads_fields, utc_text
from common.tokenbucket import Buckets
from ipc.peer import Peer

from .coalesced import CoalescedEvents, Repeat
from .file import AuditFile

log = logging.getLogger(__name__)

_DAY_S = 86_400
_RECENT = frozenset({"admin.refused", "license.listed", "ota.consent", "usage.counted"})
"""Those that release 0.1.0 never counts. It may run again before an update is committed, and find what was counted."""
COUNTED = _RECENT | {
    "access.denied", "admin.request", "license.refreshed", "license.replayed", "license.validated", "request.refused",
}  # fmt: skip
"""The events that may be counted. The table of counts is a file that anyone who has the agent's user can write: a record of any
other kind, a checkpoint before all, does not come into the chain by it."""


class AuditUnavailable(Exception):
    """The log takes no record, so nothing that must be logged may happen."""


def actor(peer: Peer) -> dict[str, Any]:
    """A peer as records name it; with role, certificate and name where they have shown a certificate."""
    who: dict[str, Any] = {"uid": peer.uid, "gid": peer.gid, "pid": peer.pid}
    if isinstance(peer, Caller):
        who.update(role=peer.role, certificate=peer.certificate, name=peer.name)
        if peer.break_glass:
            who["break_glass"] = True
    return who


class AuditLog:
    """Writes the chain.

    Attributes:
        records: full records of this run.
        counted: events of this run that were only counted.
        pending: records wait for `flush`.
        checkpoint_due: a segment was closed, and may be archived only after a checkpoint.

    Args:
        file: open.
        chain: continues the chain that the file ends with.
        coalesced: counts the events that exceed a budget.
        schedule: arranges for `flush` to be called at the end of the loop tick.
    """

    def __init__(
        self,
        file: AuditFile,
        chain: Chain,
        coalesced: CoalescedEvents,
        clock: Clock,
        limits: AuditConfig,
        schedule: Callable[[], None],
    ) -> None:
        self._file = file
        self._chain = chain
        self._coalesced = coalesced
        self._clock = clock
        self._limits = limits
        self._schedule = schedule
        self._pending: list[bytes] = []
        self.pending = False
        self._mark: tuple[int, Heads] = (chain.seq, chain.heads)
        self._budget = Buckets(limits.records_per_s, limits.burst)
        self._day = -1
        self._day_bytes = 0
        self._budget_alerted = False
        self._lost = 0
        self.records = 0
        self.counted = 0
        self._raised: dict[Alert, float] = {}
        self.checkpoint_due = False

    def reconfigure(self, limits: AuditConfig) -> None:
        """Applies new limits."""
        self._limits = limits
        self._budget.rate, self._budget.burst = limits.records_per_s, limits.burst

    @property
    def seq(self) -> int:
        """Number of the last record."""
        return self._chain.seq

    @property
    def heads(self) -> Heads:
        """Hash of the last record of each class, 64 hex bytes each."""
        return self._chain.heads

    @property
    def failing(self) -> bool:
        """Whether the disk does not take records at the moment."""
        return self._lost > 0

    @property
    def raised_alerts(self) -> tuple[tuple[Alert, float], ...]:
        """The alerts of this run that were not cleared, each with when it was raised last: seconds since 1970 UTC."""
        return tuple(sorted(self._raised.items(), key=lambda item: item[0].event))

    def record(self, event: str, outcome: str = "ok", **fields: Any) -> None:
        """Logs a full record at the end of this loop tick."""
        self._append(event, outcome, fields)

    def raise_alert(self, alert: Alert, message: str, outcome: str = "raised", **fields: Any) -> None:
        """Tells the journal and the log of an alert; the caller makes sure that a lasting one is raised once.

        Args:
            alert: from the catalogue.
            message: for people, in the journal.
            outcome: for the record.
            fields: for the record.
        """
        if alert.severity is Severity.LOW:
            log.warning("%s", message)
        else:
            log.critical("ALERT %s", message)
        self._raised[alert] = self._clock.wall()
        self._append(alert.event, outcome, {"severity": alert.severity.value, **fields})

    def clear_alert(self, alert: Alert, message: str, **fields: Any) -> None:
        """Tells the journal and the log that an alert is over."""
        log.warning("cleared: %s", message)
        self._raised.pop(alert, None)
        self._append(alert.event, "cleared", {"severity": alert.severity.value, **fields})

    async def record_durably(self, event: str, outcome: str = "ok", **fields: Any) -> None:
        """Logs a full record and returns when it is durable; for what must not happen unlogged.

        Raises:
            AuditUnavailable: the disk does not take it.
        """
        # What waits goes first: only then is it known whether the log takes this record.
        self.flush()
        if not self._lost:
            self._append(event, outcome, fields)
            self.flush()
        if self._lost:
            raise AuditUnavailable("the audit log cannot be written; make room on its disk first")
        try:
            # The event loop goes on meanwhile: no validation waits for the disk.
            await asyncio.to_thread(self._file.sync)
        except OSError as error:
            raise AuditUnavailable(f"the audit log cannot be made durable: {error.strerror}") from None

    def record_within_budget(
        self, uid: int, key: Any, event: str, outcome: str, describe: Callable[[], dict[str, Any]], *, important: bool
    ) -> None:
        """Logs in full while the budgets last, then counts.

        Args:
            uid: whose budget.
            key: what counts as the same.
            event: as in `record`.
            outcome: as in `record`.
            describe: gives the fields.
            important: not subject to the UID's budget, only to the day's.
        """
        mono = self._clock.monotonic()
        if not self._day_is_full() and (important or self._budget.take(uid, mono)):
            self._append(event, outcome, describe())
            return
        self.count(key, event, outcome, describe)

    def count(self, key: Any, event: str, outcome: str, describe: Callable[[], dict[str, Any]], times: int = 1) -> None:
        """Counts what is logged once a minute, as one record; arguments as in `record_within_budget`, and how often it was."""
        self.counted += times
        now = self._clock.wall()
        recent = event in _RECENT
        fields = {"event": event, "outcome": outcome}
        if self._coalesced.count(key, now, lambda: {**fields, **describe()}, times=times, recent=recent):
            return
        # More kinds than the table holds in one minute, or one that is too long for it: what is lost is who it was.
        other = ("other", event, outcome)
        if not self._coalesced.count(other, now, lambda: {**fields, "others": True}, spare=True, times=times, recent=recent):
            self._append(event, outcome, {**describe(), **({"count": times} if times > 1 else {})})

    def count_known(self, uid: int, key: int, mono: float, wall: float) -> bool:
        """The short way for what has been counted before in this minute; False if it must go the long way.

        Args:
            uid: whose budget.
            key: under which `record_within_budget` counted it.
            mono: monotonic seconds.
            wall: seconds since 1970 UTC.
        """
        budget = self._budget
        level = budget.levels.get(uid)
        if level is None or level[0] + (mono - level[1]) * budget.rate >= 1.0:
            return False
        if not self._coalesced.count_known(key, wall):
            return False
        self.counted += 1
        return True

    def _day_is_full(self) -> bool:
        day = int(self._clock.wall()) // _DAY_S
        if day != self._day:
            self._day, self._day_bytes, self._budget_alerted = day, 0, False
        if self._day_bytes < self._limits.daily_bytes:
            return False
        if not self._budget_alerted:
            self._budget_alerted = True
            budget = self._limits.daily_bytes
            text = (
                f"the audit log's budget of {budget} bytes for today is used up; the log counts validations until midnight UTC"
            )
            self.raise_alert(AUDIT_BUDGET, text, daily_bytes=budget)
        return True

    def _append(self, event: str, outcome: str, fields: dict[str, Any]) -> None:
        if self._lost:
            # The disk is full: nothing may be chained that might not be written.
            self._lost += 1
            self._schedule()
            return
        if not self._pending:
            self._mark = (self._chain.seq, self._chain.heads)
            self._schedule()
        self._pending.append(self._chain.append(self._clock.wall(), self._clock.monotonic(), event, outcome, fields))
        self.pending = True

    def flush(self) -> None:
        """Writes what this tick has logged. Does not raise: validations go on with a full disk."""
        if self._lost and not self._pending:
            self._try_to_resume()
        if not self._pending:
            return
        data = b"".join(self._pending)
        count = len(self._pending)
        self._pending.clear()
        self.pending = False
        try:
            self._file.write(data)
        except OSError as error:
            self._lost += count
            # The chains go back to before the lost records; the gap record says how many.
            self._chain.rewind(*self._mark)
            log.error("the audit log cannot be written (%s); records are lost until there is room", error.strerror)
            return
        self.records += count
        self._day_bytes += len(data)
        if self._file.size >= self._limits.segment_bytes:
            self._rotate()

    def _try_to_resume(self) -> None:
        mark = (self._chain.seq, self._chain.heads)
        line = self._chain.append(
            self._clock.wall(), self._clock.monotonic(), "audit.gap", "lost", {"lost_records": self._lost}
        )
        try:
            self._file.write(line)
        except OSError:
            self._chain.rewind(*mark)
            return
        log.warning("the audit log can be written again; %d records were lost", self._lost)
        self._lost = 0
        self.records += 1

    def _rotate(self) -> None:
        try:
            segment = self._file.rotate(self._chain.seq + 1)
        except OSError as error:
            log.error("the audit log's segment cannot be closed (%s); the file grows on", error.strerror)
            return
        fields = {"segment": segment.name, "last_seq": self._chain.seq, "heads": heads_fields(self._chain.heads)}
        self._append(SEGMENT_CLOSED, "ok", fields)
        self.checkpoint_due = True

    def look_after_file(self) -> None:
        """Alerts if somebody has removed, replaced, cut or lengthened the open file; called every second."""
        if self._lost:
            return
        self.flush()
        try:
            found = self._file.look()
        except OSError as error:
            found = f"the audit log's file is gone and cannot be created again: {error.strerror}"
        if found is not None:
            self.raise_alert(AUDIT_FILE, found, text=found)

    def begin_segment_of_the_day(self) -> None:
        """Closes the open file if it is of another day, so that retention can be judged by the day."""
        self.flush()
        if not self._lost and self._file.is_of_another_day(utc_text(self._clock.wall())[:10]):
            self._rotate()

    def emit_counts(self) -> None:
        """Logs what has been counted, a record each; called every minute and at the end."""
        self._emit(self._coalesced.drain())

    def recover_counts(self) -> None:
        """Logs what a killed run had counted."""
        self._emit(self._coalesced.recover())

    def _emit(self, repeats: list[Repeat]) -> None:
        for repeat in repeats:
            fields = dict(repeat.fields)
            event, outcome = fields.pop("event", None), str(fields.pop("outcome", "unknown"))
            if event not in COUNTED:
                log.warning("audit.repeats holds a count of an event that the agent never counts; the count was left out")
                self._append("audit.count_refused", "damaged", {"count": repeat.count})
                continue
            # The table is a file; what is in it must not take the place of what the chain writes itself.
            for name in ("seq", "class", "time", "mono", "prev", "hash"):
                fields.pop(name, None)
            self._append(
                event,
                outcome,
                {**fields, "count": repeat.count, "first": utc_text(repeat.first), "last": utc_text(repeat.last)},
            )

    async def checkpoint(self, before: bytes, *, reseal: bool = False) -> tuple[bytes, bytes]:
        """Logs a checkpoint durably; the caller then extends the sealed audit value with the returned digest.

        Args:
            before: the sealed value, 32 bytes.
            reseal: the sealed value does not fit the log, which has been alerted; a new seal begins here.

        Returns:
            The digest of all heads (32 bytes) to extend with, and the value that must result.

        Raises:
            AuditUnavailable: the disk does not take it.
        """
        self.flush()
        heads = self._chain.heads
        digest = heads_digest(heads)
        value = fold_checkpoint(before, digest)
        fields = {"heads": heads_fields(heads), "before": before.hex(), "value": value.hex()}
        await self.record_durably(CHECKPOINT, "ok", **fields, **({"reseal": True} if reseal else {}))
        self.checkpoint_due = False
        return digest, value

    def tidy(self) -> None:
        """Gives back memory of budgets that are full again."""
        self._budget.forget_full(self._clock.monotonic())

    def discard(self) -> None:
        """Closes the file and the table; nothing has been logged."""
        self._file.close()
        self._coalesced.close()

    def close(self) -> None:
        """Writes what is left and closes the file. Waits for the disk.

        Raises:
            OSError: the last records may not be durable.
        """
        self.emit_counts()
        self.flush()
        try:
            self._file.sync()
        finally:
            self.discard()

    async def finish(self) -> None:
        """As `close`, but the event loop goes on while a thread waits for the disk. Raises as `close`."""
        self.emit_counts()
        self.flush()
        try:
            await asyncio.to_thread(self._file.sync)
        finally:
            self.discard()
