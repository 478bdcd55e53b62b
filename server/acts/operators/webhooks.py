"""Acts on webhooks: list, add, change, test, pause and resume, remove; and the events that their receivers have not taken."""

from typing import Annotated

from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, Nothing, Number, PageForm, Time, page
from server.notify.webhook_states import WebhookEvent
from server.notify.webhooks import OVERLAP_S, DeadLetterRow

WebhookId = Annotated[str, Field(pattern=r"^wh-[0-9a-f]{12}$")]
Url = Annotated[str, Field(min_length=9, max_length=1024, pattern=r"^https://[!-~]+$")]
Kinds = Annotated[tuple[Annotated[str, Field(max_length=70, pattern=r"^[a-z_.*]+$")], ...], Field(max_length=32, strict=False)]


class Webhook(Form):
    """A webhook, never its secret; times are seconds since 1970 UTC."""

    webhook_id: str
    url: str
    kinds: tuple[str, ...]
    state: str
    created_at: Time
    last_success: Time | None
    failing_since: Time | None
    problem: str | None
    after_seq: Number
    behind: Number
    dead_letters: Number
    dropped: Number


class DeadLetter(Form):
    """An event that a receiver has not taken; times are seconds since 1970 UTC."""

    seq: Number
    at: Time
    kind: str
    subject: str
    died_at: Time
    problem: str
    again: bool


class NewWebhook(Form):
    """A webhook to add; without kinds it sends all events."""

    url: Url
    kinds: Kinds = ()


class Added(Form):
    """A new webhook, and its secret: the only time that it is known."""

    webhook_id: str
    secret: str


class OneWebhook(Form):
    """Which webhook."""

    webhook_id: WebhookId


class Change(Form):
    """What to change of a webhook; what is left out stays."""

    webhook_id: WebhookId
    url: Url | None = None
    kinds: Kinds | None = None


class NewSecret(Form):
    """For which webhook, and for how many seconds the former secret signs too."""

    webhook_id: WebhookId
    overlap_s: Annotated[int, Field(ge=0, le=30 * 86_400)] = OVERLAP_S


class Secret(Form):
    """A new secret: the only time that it is known."""

    secret: str


class LettersForm(PageForm):
    """Whose dead letters, the oldest event first."""

    webhook_id: WebhookId
    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


class Retry(Form):
    """Which dead letters to send once more: one event's, or all."""

    webhook_id: WebhookId
    seq: Annotated[int, Field(ge=1, le=2**53 - 1)] | None = None


class EventCount(Form):
    """How many."""

    count: Number


def list_webhooks(context: Context, _body: Nothing) -> Listed[Webhook]:
    """List webhooks, and how their deliveries go; never their secrets."""
    return Listed(items=tuple(Webhook.model_validate(row) for row in context.server.webhooks.listed(context.session)))


def add(context: Context, body: NewWebhook) -> Added:
    """Send events from now on to an address, and return the secret that they are signed with."""
    webhook_id, secret = context.server.webhooks.add(context.session, body.url, body.kinds, context.now)
    return Added(webhook_id=webhook_id, secret=secret)


def change(context: Context, body: Change) -> Nothing:
    """Change where a webhook sends, or what."""
    context.server.webhooks.change(context.session, body.webhook_id, context.now, url=body.url, kinds=body.kinds)
    return Nothing()


def new_secret(context: Context, body: NewSecret) -> Secret:
    """Replace a webhook's secret and return the new one."""
    return Secret(secret=context.server.webhooks.new_secret(context.session, body.webhook_id, context.now, body.overlap_s))


def test(context: Context, body: OneWebhook) -> Nothing:
    """Send a webhook an event of the kind webhook.test."""
    context.server.webhooks.test(context.session, body.webhook_id, context.now)
    return Nothing()


def pause(context: Context, body: OneWebhook) -> Nothing:
    """Send a webhook nothing until it is resumed."""
    context.server.webhooks.step(context.session, body.webhook_id, WebhookEvent.PAUSE, context.now)
    return Nothing()


def resume(context: Context, body: OneWebhook) -> Nothing:
    """Send to a webhook again, first what has happened meanwhile."""
    context.server.webhooks.step(context.session, body.webhook_id, WebhookEvent.RESUME, context.now)
    return Nothing()


def remove(context: Context, body: OneWebhook) -> Nothing:
    """Remove a webhook and its dead letters."""
    context.server.webhooks.remove(context.session, body.webhook_id, context.now)
    return Nothing()


def list_dead_letters(context: Context, body: LettersForm) -> Listed[DeadLetter]:
    """List the events that a webhook's receiver has not taken."""
    last = None if not body.after else DeadLetterRow(int(body.after), 0, "", "", 0, "", False)
    rows = context.server.webhooks.dead_letters(context.session, body.webhook_id, last, body.limit + 1)
    return page(rows, DeadLetter, body.limit, lambda row: str(row.seq))


def retry(context: Context, body: Retry) -> EventCount:
    """Send a webhook's dead letters once more."""
    return EventCount(count=context.server.webhooks.retry(context.session, body.webhook_id, context.now, body.seq))


_ONE = "/webhooks/{webhook_id}"

ACTS = (
    Act("webhooks.list", "webhooks:read", Role.VIEWER, Nothing, Listed[Webhook], list_webhooks, "/webhooks", "GET"),
    Act("webhooks.add", "webhooks:write", Role.ADMINISTRATOR, NewWebhook, Added, add, "/webhooks"),
    Act("webhooks.change", "webhooks:write", Role.ADMINISTRATOR, Change, Nothing, change, f"{_ONE}/change"),
    Act("webhooks.new_secret", "webhooks:write", Role.ADMINISTRATOR, NewSecret, Secret, new_secret, f"{_ONE}/new-secret"),
    Act("webhooks.test", "webhooks:write", Role.ADMINISTRATOR, OneWebhook, Nothing, test, f"{_ONE}/test"),
    Act("webhooks.pause", "webhooks:write", Role.ADMINISTRATOR, OneWebhook, Nothing, pause, f"{_ONE}/pause"),
    Act("webhooks.resume", "webhooks:write", Role.ADMINISTRATOR, OneWebhook, Nothing, resume, f"{_ONE}/resume"),
    Act("webhooks.remove", "webhooks:write", Role.ADMINISTRATOR, OneWebhook, Nothing, remove, f"{_ONE}/remove"),
    Act(
        "webhooks.list_dead_letters", "webhooks:read", Role.VIEWER, LettersForm, Listed[DeadLetter], list_dead_letters,
        f"{_ONE}/dead-letters", "GET",
    ),
    Act("webhooks.retry", "webhooks:write", Role.ADMINISTRATOR, Retry, EventCount, retry, f"{_ONE}/retry"),
)  # fmt: skip
