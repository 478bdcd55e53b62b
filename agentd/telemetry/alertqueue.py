"""Decides which alerts become events for the webhook, in which order they go, and when one is put aside. Pure.

An alert that lasts gives two events: raised, and cleared. One that does not gives an event each time, but only one a minute.
Events go out in their order, each with an id that stays the same at every attempt and across restarts: a receiver that takes
each id once takes no alert twice. What is kept in the file holds no secret.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from agentd.base.alerts import WEBHOOK_FAILING, Alert, Severity
from common.redelivery import Attempt, Next, judge, pause_s

FORMAT = 1
MAX_WAITING = 200
"""Events that wait; beyond that the least severe is dropped, of those the oldest."""
MAX_DEAD = 100
"""Dead letters that are kept; the oldest gives room."""
AGAIN_S = 60
"""An alert that does not last gives one event in so many seconds."""
RANKS = {severity: rank for rank, severity in enumerate((Severity.LOW, Severity.MEDIUM, Severity.HIGH, Severity.CRITICAL))}

Time = Annotated[int, Meta(ge=0, lt=253_402_300_800)]
Text = Annotated[str, Meta(max_length=500)]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent to a receiver. Times are seconds since 1970 UTC.

    Attributes:
        id: the same at each attempt.
        alert: the alert's event in the audit log.
        severity: of the alert.
        title: a few words.
        action: what to do.
        state: whether it begins or is over.
        raised_at: when it was raised.
        cleared_at: when it was over; None while it is not.
    """

    id: str
    alert: str
    severity: Severity
    title: Text
    action: Text
    state: Literal["raised", "cleared"]
    raised_at: Time
    cleared_at: Time | None = None

    @property
    def at(self) -> int:
        """When it happened."""
        return self.raised_at if self.cleared_at is None else self.cleared_at

    def body(self, agent_id: str) -> bytes:
        """The body of its request: the same bytes at each attempt."""
        return msgspec.json.encode({"agent": agent_id, **msgspec.structs.asdict(self)}, order="sorted")


class Dead(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was put aside: when, and what its receiver said last."""

    event: Event
    at: Time
    problem: Text


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds.

    Attributes:
        open: alerts that are raised by what the receiver got, or will get; each with the time.
        waiting: not delivered yet, in order.
        dead: put aside, the oldest first.
        failing_since: the first failure after the last success.
        attempts: of the first that waits.
    """

    format: Literal[1] = 1
    open: dict[str, Time] = {}
    waiting: Annotated[tuple[Event, ...], Meta(max_length=MAX_WAITING)] = ()
    dead: Annotated[tuple[Dead, ...], Meta(max_length=MAX_DEAD)] = ()
    failing_since: Time | None = None
    attempts: Annotated[int, Meta(ge=0)] = 0


def decode_kept(data: bytes) -> Kept | None:
    """The file's content, or None if it cannot be read."""
    try:
        return msgspec.json.decode(data, type=Kept)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class AlertQueue:
    """Events for one receiver.

    Args:
        kept: from the file.
        new_id: makes the id of an event.

    Attributes:
        waiting: not delivered yet, in order.
        dead: put aside.
        dropped: events of this run for which there was no room.
        changes: grows with each change of what is kept.
        problem: what went wrong last; empty after a success.
        failing_since: seconds since 1970 UTC; None while nothing fails.
    """

    def __init__(self, kept: Kept, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._open = dict(kept.open)
        self._seen: dict[Alert, tuple[float, float]] = {}
        self.waiting = list(kept.waiting)
        self.dead = list(kept.dead)
        self.failing_since = kept.failing_since
        self._attempts = kept.attempts
        self._due = 0.0
        self.dropped = 0
        self.changes = 0
        self.problem = ""

    def kept(self) -> Kept:
        """What the file should hold."""
        return Kept(
            open=dict(self._open),
            waiting=tuple(self.waiting),
            dead=tuple(self.dead),
            failing_since=self.failing_since,
            attempts=self._attempts,
        )

    def look(
        self,
        raised: Iterable[tuple[Alert, float]],
        over: Callable[[Alert], bool],
        catalogue: Iterable[Alert],
        least: Severity,
        now: int,
        mono: float,
    ) -> None:
        """Turns what is raised now into events.

        Args:
            raised: the alerts that are raised, each with the time of that, seconds since 1970 UTC.
            over: whether this run knows that an alert is not so any more; asked of those that are not raised.
            catalogue: all alerts.
            least: severity from which on alerts become events.
            now: seconds since 1970 UTC.
            mono: monotonic seconds.
        """
        present = dict(raised)
        for alert, at in present.items():
            if RANKS[alert.severity] < RANKS[least] or alert is WEBHOOK_FAILING:
                continue
            if alert.lasts:
                if alert.event not in self._open:
                    self._open[alert.event] = int(at)
                    self._add(alert, int(at), None)
            elif at != (seen := self._seen.get(alert, (None, -float("inf"))))[0] and mono - seen[1] >= AGAIN_S:
                self._seen[alert] = at, mono
                self._add(alert, int(at), None)
        names = {alert.event: alert for alert in catalogue}
        for event, at in list(self._open.items()):
            known = names.get(event)
            if known is None:
                self._open.pop(event)  # of another release
                self.changes += 1
            elif known not in present and over(known):
                self._open.pop(event)
                self._add(known, at, max(now, at))

    def _add(self, alert: Alert, raised_at: int, cleared_at: int | None) -> None:
        self.changes += 1
        self.waiting.append(
            Event(
                id=self._new_id(),
                alert=alert.event,
                severity=alert.severity,
                title=alert.title,
                action=alert.action,
                state="raised" if cleared_at is None else "cleared",
                raised_at=raised_at,
                cleared_at=cleared_at,
            )
        )
        self._limit()

    def add(self, event: Event) -> None:
        """Puts an event at the end."""
        self.changes += 1
        self.waiting.append(event)
        self._limit()

    def _limit(self) -> None:
        while len(self.waiting) > MAX_WAITING:
            least = min(range(len(self.waiting)), key=lambda place: (RANKS[self.waiting[place].severity], place))
            if least == 0:
                self._attempts = 0
            del self.waiting[least]
            self.dropped += 1

    def next(self, mono: float) -> Event | None:
        """The event that is to be sent now; None if there is none, or a pause is not over."""
        return self.waiting[0] if self.waiting and mono >= self._due else None

    def note(self, event: Event, attempt: Attempt, now: int, mono: float, draw: float) -> Next:
        """Takes in how an attempt ended.

        Args:
            event: that was sent.
            attempt: how it ended.
            now: seconds since 1970 UTC.
            mono: monotonic seconds.
            draw: a random number between 0 and 1.

        Returns:
            What follows.
        """
        self.changes += 1
        self.problem = "" if attempt.taken else attempt.problem[:500]
        if attempt.taken:
            self.failing_since = None
        elif self.failing_since is None or self.failing_since > now:
            self.failing_since = now
        if not self.waiting or self.waiting[0] is not event:
            return Next.DELIVERED if attempt.taken else Next.AGAIN  # it was dropped meanwhile
        self._attempts += 1
        since = self.failing_since
        verdict = judge(attempt, self._attempts, 0 if since is None else now - since, now - event.at)
        if verdict is Next.AGAIN:
            self._due = mono + pause_s(self._attempts, attempt.retry_after_s, draw)
            return verdict
        del self.waiting[0]
        self._attempts, self._due = 0, 0.0
        if verdict is not Next.DELIVERED:
            self.dead.append(Dead(event=event, at=now, problem=self.problem))
            self.dropped += len(self.dead) - MAX_DEAD if len(self.dead) > MAX_DEAD else 0
            del self.dead[:-MAX_DEAD]
        return verdict

    def hurry(self) -> None:
        """Ends a pause: what waits is sent at once."""
        self._due = 0.0

    def revive(self) -> int:
        """Puts all dead letters back, before what waits; returns how many there were."""
        revived = [dead.event for dead in self.dead]
        self.waiting[:0] = revived
        self.dead.clear()
        self._attempts = 0
        self.changes += 1
        self._limit()
        self.hurry()
        return len(revived)
