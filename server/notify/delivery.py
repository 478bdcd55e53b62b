"""Delivers events to webhooks: claims a webhook, sends what it waits for, and notes how each attempt ended.

One process at a time has a webhook, for as long as its lease lasts. An event counts as delivered once that is committed, so a
process that is killed in between delivers it twice: receivers know an event by its number.
"""

import json
import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import Select, delete, func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from common.redelivery import Attempt, Next, judge, pause_s
from common.version import VERSION
from server.registry import events
from server.registry.cipher import Cipher
from server.registry.database import Database
from server.registry.dialect import passing_locked
from server.registry.events import EventRow
from server.registry.models.webhooks import DeadLetter, Webhook

from .sender import Sender
from .signature import HEADER, signed
from .webhook_states import WebhookEvent, WebhookState
from .webhooks import Webhooks, matches

LEASE_S = 120
ROUND_S = 60
"""How long one round may go on with one webhook; a lease is longer."""
BATCH = 100
"""Events that one look reads."""
THREADS = 8
"""Webhooks that are served at once: a receiver that does not answer holds up its own events only."""
MAX_DEAD_LETTERS = 1000
"""For each webhook; the oldest go, and are counted."""
_log = logging.getLogger("license_server")


@dataclass(frozen=True, slots=True)
class _Claimed:
    webhook_id: str
    url: str
    kinds: tuple[str, ...]
    keys: tuple[str, ...]


def body_of(event: EventRow) -> bytes:
    """The body of a request: an event as JSON."""
    content = {
        "id": f"evt-{event.seq}",
        "seq": event.seq,
        "at": event.at,
        "kind": event.kind,
        "subject": event.subject,
        "fields": event.fields,
    }
    return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()


class Deliveries:
    """Delivers events.

    Args:
        database: the registry's.
        cipher: opens secrets of webhooks.
        webhooks: pauses those whose receivers are gone.
        sender: sends.
        holder: names this process.
        wall: seconds since 1970 UTC.
        draw: random numbers between 0 and 1.
    """

    def __init__(
        self,
        database: Database,
        cipher: Cipher,
        webhooks: Webhooks,
        sender: Sender,
        holder: str,
        wall: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._cipher = cipher
        self._webhooks = webhooks
        self._sender = sender
        self._holder = holder[:128]
        self._wall = wall
        self._draw = draw
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ends a run that is under way after the requests that are being sent, and every later one at once."""
        self._stopping.set()

    def run(self) -> int:
        """Serves every webhook that is due, and returns how many events were delivered. Raises nothing: the next goes on."""
        if self._stopping.is_set():
            return 0
        try:
            claimed = self._claim()
        except SQLAlchemyError as problem:
            _log.error("webhooks could not be claimed", extra={"fields": {"kind": type(problem).__name__}})
            return 0
        if not claimed:
            return 0
        with ThreadPoolExecutor(min(THREADS, len(claimed)), "webhook") as threads:
            return sum(threads.map(self._serve, claimed))

    def _now(self) -> int:
        return int(self._wall())

    # Claim

    def _claim(self) -> list[_Claimed]:
        now = self._now()
        with self._database.read() as session:
            if not list(session.scalars(self._due(session, now).limit(1))):
                return []
        with self._database.write() as session:
            claimed = []
            for row in session.scalars(passing_locked(self._due(session, now))):
                row.holder, row.lease_until = self._holder, now + LEASE_S
                claimed.append(_Claimed(row.id, row.url, tuple(json.loads(row.kinds)), self._keys(row, now)))
            return claimed

    def _due(self, session: Session, now: int) -> Select[Webhook]:
        newest = events.newest(session)
        again = select(DeadLetter.webhook_id).where(DeadLetter.again)
        free = or_(Webhook.lease_until.is_(None), Webhook.lease_until <= now, Webhook.lease_until > now + LEASE_S)
        waits = or_(Webhook.after_seq < newest, Webhook.id.in_(again))
        # A due time further ahead than any pause was written while a clock was wrong.
        due = or_(Webhook.due_at <= now, Webhook.due_at > now + 2 * 3600)
        return select(Webhook).where(Webhook.state == WebhookState.ACTIVE, due, free, waits).order_by(Webhook.due_at)

    def _keys(self, row: Webhook, now: int) -> tuple[str, ...]:
        keys = [self._cipher.open("webhook", row.id, "sealed", row.sealed).decode()]
        if row.sealed_before is not None and row.overlap_until is not None and now < row.overlap_until:
            keys.append(self._cipher.open("webhook", row.id, "sealed_before", row.sealed_before).decode())
        return tuple(keys)

    # Serve

    def _serve(self, webhook: _Claimed) -> int:
        delivered = 0
        try:
            end = self._now() + ROUND_S
            while self._now() < end and not self._stopping.is_set():
                event = self._next(webhook)
                if event is None:
                    break
                attempt = self._send(webhook, event)
                followed = self._note(webhook, event, attempt)
                delivered += followed is Next.DELIVERED
                if followed not in (Next.DELIVERED, Next.DEAD):
                    end = 0  # a receiver that does not take the newest takes no dead letter either
            delivered += self._serve_dead(webhook, end)
            self._release(webhook)
        except SQLAlchemyError as problem:
            # The lease ends by itself.
            fields = {"webhook": webhook.webhook_id, "kind": type(problem).__name__}
            _log.error("a webhook's deliveries could not be noted", extra={"fields": fields})
        return delivered

    def _next(self, webhook: _Claimed) -> EventRow | None:
        """The event that the webhook waits for; moves past those that are not for it."""
        while True:
            with self._database.write() as session:
                row = self._held(session, webhook)
                if row is None:
                    return None
                found = events.listed(session, row.after_seq, BATCH)
                for event in found:
                    if matches(webhook.kinds, event.kind, event.subject, webhook.webhook_id):
                        return event
                    row.after_seq = event.seq
                if len(found) < BATCH:
                    return None

    def _send(self, webhook: _Claimed, event: EventRow) -> Attempt:
        body = body_of(event)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"license-server/{VERSION}",
            "License-Server-Event": event.kind,
            HEADER: signed(body, self._now(), webhook.keys),
        }
        return self._sender.send(webhook.url, headers, body)

    def _note(self, webhook: _Claimed, event: EventRow, attempt: Attempt) -> Next:
        now = self._now()
        with self._database.write() as session:
            row = self._held(session, webhook)
            if row is None or row.after_seq >= event.seq:
                return Next.AGAIN  # another process has it by now
            if not attempt.taken:
                row.attempts += 1
                row.failing_since = row.failing_since if row.failing_since is not None and row.failing_since <= now else now
                row.problem = attempt.problem[:300]
            followed = judge(attempt, row.attempts, now - (row.failing_since or now), now - event.at)
            if followed is Next.DELIVERED:
                row.after_seq, row.attempts, row.due_at = event.seq, 0, now
                row.failing_since, row.problem, row.last_success = None, None, now
            elif followed is Next.DEAD:
                self._bury(session, row, event, attempt.problem, now)
                row.after_seq, row.attempts, row.due_at = event.seq, 0, now
            else:
                row.due_at = now + pause_s(row.attempts, attempt.retry_after_s, self._draw())
            if followed is Next.PAUSE:
                self._webhooks.step(session, webhook.webhook_id, WebhookEvent.GONE, now)
                row.problem = attempt.problem[:300]
        if followed is not Next.DELIVERED:
            fields = {"webhook": webhook.webhook_id, "seq": event.seq, "problem": attempt.problem[:300], "next": followed.value}
            _log.warning("a webhook's receiver did not take an event", extra={"fields": fields})
        return followed

    def _bury(self, session: Session, row: Webhook, event: EventRow, problem: str, now: int) -> None:
        fields = json.dumps(event.fields, separators=(",", ":"), sort_keys=True)
        session.merge(
            DeadLetter(
                webhook_id=row.id,
                seq=event.seq,
                at=event.at,
                kind=event.kind,
                subject=event.subject,
                fields=fields,
                died_at=now,
                problem=problem[:300],
                again=False,
            )
        )
        session.flush()
        mine = DeadLetter.webhook_id == row.id
        over = (session.scalar(select(func.count()).select_from(DeadLetter).where(mine)) or 0) - MAX_DEAD_LETTERS
        if over > 0:
            oldest = list(session.scalars(select(DeadLetter.seq).where(mine).order_by(DeadLetter.seq).limit(over)))
            session.execute(delete(DeadLetter).where(mine, DeadLetter.seq.in_(oldest)))
            row.dropped += over

    # Dead letters that are sent once more

    def _asked(self, session: Session, webhook: _Claimed) -> DeadLetter | None:
        query = select(DeadLetter).where(DeadLetter.webhook_id == webhook.webhook_id, DeadLetter.again)
        return session.scalars(query.order_by(DeadLetter.seq).limit(1)).first()

    def _serve_dead(self, webhook: _Claimed, end: int) -> int:
        delivered = 0
        while self._now() < end and not self._stopping.is_set():
            with self._database.write() as session:
                row = self._asked(session, webhook)
                if row is None or self._held(session, webhook) is None:
                    break
                row.again = False  # once: a letter that is refused again stays dead
                event = EventRow(row.seq, row.at, row.kind, row.subject, json.loads(row.fields))
            attempt = self._send(webhook, event)
            with self._database.write() as session:
                letter = session.get(DeadLetter, (webhook.webhook_id, event.seq))
                if letter is not None and attempt.taken:
                    session.delete(letter)
                elif letter is not None:
                    letter.problem, letter.died_at = attempt.problem[:300], self._now()
            delivered += attempt.taken
            if attempt.status is None:
                break
        return delivered

    # Lease

    def _held(self, session: Session, webhook: _Claimed) -> Webhook | None:
        """The webhook's row, locked; None if this process does not have it any more."""
        row = session.get(Webhook, webhook.webhook_id, with_for_update=True)
        if row is None or row.holder != self._holder or row.state != WebhookState.ACTIVE:
            return None
        return row

    def _release(self, webhook: _Claimed) -> None:
        with self._database.write() as session:
            row = session.get(Webhook, webhook.webhook_id, with_for_update=True)
            if row is not None and row.holder == self._holder:
                row.holder, row.lease_until = None, None
