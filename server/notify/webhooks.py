"""Makes and changes webhooks. Every method works in the transaction of the session that it is given."""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from server.base.errors import NotFound, RegistryError
from server.registry import audit, events
from server.registry.cipher import Cipher
from server.registry.models.webhooks import DeadLetter, Webhook

from .signature import new_secret
from .webhook_states import WEBHOOK_STATES, WebhookEvent, WebhookState
from .webhookurl import checked_url

MAX_WEBHOOKS = 32
MAX_KINDS = 32
OVERLAP_S = 86_400
"""How long requests are signed under the former secret too, after it was replaced."""
TEST = "webhook.test"
"""An event that goes to the webhook alone that it is about."""
_KIND = re.compile(r"\*|[a-z_]{1,32}\.(\*|[a-z_]{1,32})")


@dataclass(frozen=True, slots=True)
class WebhookRow:
    """A webhook as operators see it; its secret is shown once, when it is made. Times are seconds since 1970 UTC.

    Attributes:
        webhook_id: its id.
        url: where it sends.
        kinds: patterns of the kinds of events that it sends: `license.*`, `agent.revoked`, `*`.
        state: active or paused.
        created_at: when it was made.
        last_success: when its receiver last took an event; None before the first.
        failing_since: since when its receiver takes none; None if it does.
        problem: what went wrong last; None if nothing has since the last success.
        after_seq: the number of the last event that is done.
        behind: events that may wait behind that one, of all kinds.
        dead_letters: events that its receiver has not taken.
        dropped: dead letters beyond the bound, which are lost.
    """

    webhook_id: str
    url: str
    kinds: tuple[str, ...]
    state: str
    created_at: int
    last_success: int | None
    failing_since: int | None
    problem: str | None
    after_seq: int
    behind: int
    dead_letters: int
    dropped: int


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """An event that a receiver has not taken.

    Attributes:
        seq: the event's number.
        at: when it happened, seconds since 1970 UTC.
        kind: of the event.
        subject: what it is about.
        died_at: when it was put aside.
        problem: how its last attempt ended.
        again: whether it is to be sent once more.
    """

    seq: int
    at: int
    kind: str
    subject: str
    died_at: int
    problem: str
    again: bool


class Webhooks:
    """The webhooks of a registry.

    Args:
        cipher: seals their secrets.
    """

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    def add(self, session: Session, url: str, kinds: Sequence[str], now: int) -> tuple[str, str]:
        """Makes a webhook for events from now on. Returns its id, and its secret, which is never shown again.

        Args:
            session: of a writing transaction.
            url: https://…; where its name leads to is judged at each delivery.
            kinds: patterns of kinds; none means all.
            now: seconds since 1970 UTC.

        Raises:
            RegistryError: the URL or a pattern has another form, or there are `MAX_WEBHOOKS` already.
        """
        checked_url(url)
        wanted = _checked_kinds(kinds)
        if (session.scalar(select(func.count()).select_from(Webhook)) or 0) >= MAX_WEBHOOKS:
            raise RegistryError(f"there are {MAX_WEBHOOKS} webhooks, which is the limit; remove one that is not used")
        webhook_id, secret = f"wh-{secrets.token_hex(6)}", new_secret()
        session.add(
            Webhook(
                id=webhook_id,
                url=url,
                kinds=json.dumps(wanted),
                state=WebhookState.ACTIVE.value,
                sealed=self._sealed(webhook_id, secret),
                created_at=now,
                updated_at=now,
                after_seq=events.newest(session),
                due_at=now,
            )
        )
        audit.record(session, "admin", "webhook.added", "ok", now, webhook=webhook_id, url=url, kinds=wanted)
        return webhook_id, secret

    def change(
        self, session: Session, webhook_id: str, now: int, *, url: str | None = None, kinds: Sequence[str] | None = None
    ) -> None:
        """Changes where a webhook sends, or what.

        Raises:
            RegistryError: there is no such webhook, or the URL or a pattern has another form.
        """
        row = self._row(session, webhook_id)
        if url is not None:
            checked_url(url)
            row.url = url
        if kinds is not None:
            row.kinds = json.dumps(_checked_kinds(kinds))
        row.updated_at, row.due_at, row.attempts = now, now, 0
        audit.record(
            session, "admin", "webhook.changed", "ok", now, webhook=webhook_id, url=row.url, kinds=json.loads(row.kinds)
        )

    def new_secret(self, session: Session, webhook_id: str, now: int, overlap_s: int = OVERLAP_S) -> str:
        """Replaces a webhook's secret and returns the new one. Requests are signed under both for a while.

        Args:
            session: of a writing transaction.
            webhook_id: the webhook.
            now: seconds since 1970 UTC.
            overlap_s: for how long; 0 if somebody else has the former secret.

        Raises:
            RegistryError: there is no such webhook.
        """
        row, secret = self._row(session, webhook_id), new_secret()
        before = self._cipher.open("webhook", webhook_id, "sealed", row.sealed)
        kept = self._cipher.seal("webhook", webhook_id, "sealed_before", before) if overlap_s else None
        row.sealed, row.sealed_before = self._sealed(webhook_id, secret), kept
        row.overlap_until, row.updated_at = now + overlap_s, now
        audit.record(session, "admin", "webhook.secret_replaced", "ok", now, webhook=webhook_id, overlap_s=overlap_s)
        return secret

    def step(self, session: Session, webhook_id: str, event: WebhookEvent, now: int) -> None:
        """Pauses or resumes a webhook. Raises RegistryError: there is no such webhook."""
        row = self._row(session, webhook_id)
        row.state = WEBHOOK_STATES.step(WebhookState(row.state), event).value
        row.updated_at, row.due_at, row.attempts, row.failing_since = now, now, 0, None
        outcome = "alert" if event is WebhookEvent.GONE else "ok"
        actor = "server" if event is WebhookEvent.GONE else "admin"
        audit.record(session, actor, f"webhook.{row.state}", outcome, now, webhook=webhook_id, because=event.value)

    def remove(self, session: Session, webhook_id: str, now: int) -> None:
        """Removes a webhook and its dead letters. Raises RegistryError: there is no such webhook."""
        row = self._row(session, webhook_id)
        session.execute(delete(DeadLetter).where(DeadLetter.webhook_id == webhook_id))
        session.delete(row)
        audit.record(session, "admin", "webhook.removed", "ok", now, webhook=webhook_id, url=row.url)

    def test(self, session: Session, webhook_id: str, now: int) -> None:
        """Sends an event to a webhook alone, behind those that wait. Raises RegistryError: there is no such webhook."""
        self._row(session, webhook_id)
        events.emit(session, TEST, now, webhook=webhook_id)

    def retry(self, session: Session, webhook_id: str, now: int, seq: int | None = None) -> int:
        """Has dead letters sent once more, one or all; returns how many.

        Raises:
            RegistryError: there is no such webhook or dead letter.
        """
        row = self._row(session, webhook_id)
        chosen = [DeadLetter.webhook_id == webhook_id] + ([] if seq is None else [DeadLetter.seq == seq])
        count = session.scalar(select(func.count()).select_from(DeadLetter).where(*chosen)) or 0
        if seq is not None and not count:
            raise NotFound(f"webhook {webhook_id} has no dead letter {seq}; 'webhooks dead-letters' lists them")
        session.execute(update(DeadLetter).where(*chosen).values(again=True))
        row.due_at = min(row.due_at, now)
        audit.record(session, "admin", "webhook.retried", "ok", now, webhook=webhook_id, count=count)
        return count

    # Read

    def listed(self, session: Session) -> list[WebhookRow]:
        """All webhooks, the oldest first."""
        newest = events.newest(session)
        counts = select(DeadLetter.webhook_id, func.count()).group_by(DeadLetter.webhook_id)
        dead = {str(found[0]): int(found[1]) for found in session.execute(counts)}
        rows = session.scalars(select(Webhook).order_by(Webhook.created_at, Webhook.id))
        return [_row_of(row, newest, dead.get(row.id, 0)) for row in rows]

    def dead_letters(self, session: Session, webhook_id: str, last: DeadLetterRow | None, most: int) -> list[DeadLetterRow]:
        """Dead letters of a webhook behind one, the oldest event first. Raises RegistryError: there is no such webhook."""
        self._row(session, webhook_id, lock=False)
        query = select(DeadLetter).where(DeadLetter.webhook_id == webhook_id)
        if last is not None:
            query = query.where(DeadLetter.seq > last.seq)
        rows = session.scalars(query.order_by(DeadLetter.seq).limit(most))
        return [DeadLetterRow(row.seq, row.at, row.kind, row.subject, row.died_at, row.problem, row.again) for row in rows]

    def _row(self, session: Session, webhook_id: str, *, lock: bool = True) -> Webhook:
        row = session.get(Webhook, webhook_id, with_for_update=lock or None)
        if row is None:
            raise NotFound(f"there is no webhook {webhook_id!r}; 'license-server webhooks list' lists them")
        return row

    def _sealed(self, webhook_id: str, secret: str) -> bytes:
        return self._cipher.seal("webhook", webhook_id, "sealed", secret.encode())


def matches(kinds: Sequence[str], kind: str, subject: str, webhook_id: str) -> bool:
    """Whether a webhook with these patterns gets an event.

    Args:
        kinds: patterns of the webhook.
        kind: of the event.
        subject: of the event.
        webhook_id: the webhook's id; an event about a webhook goes to that one alone.
    """
    if kind.startswith("webhook."):
        return subject == webhook_id
    return any(each in ("*", kind) or (each.endswith(".*") and kind.startswith(each[:-1])) for each in kinds)


def _checked_kinds(kinds: Sequence[str]) -> list[str]:
    wanted = list(dict.fromkeys(kinds)) or ["*"]
    for kind in wanted:
        if not _KIND.fullmatch(kind):
            raise RegistryError(f"{kind[:80]!r} is not a kind of event, such as license.suspended, license.* or *")
    if len(wanted) > MAX_KINDS:
        raise RegistryError(f"a webhook has at most {MAX_KINDS} kinds; use a pattern such as license.*")
    return wanted


def _row_of(row: Webhook, newest: int, dead: int) -> WebhookRow:
    return WebhookRow(
        row.id,
        row.url,
        tuple(json.loads(row.kinds)),
        row.state,
        row.created_at,
        row.last_success,
        row.failing_since,
        row.problem,
        row.after_seq,
        max(0, newest - row.after_seq),
        dead,
        row.dropped,
    )
