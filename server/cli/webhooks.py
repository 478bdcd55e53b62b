"""Commands for webhooks."""

from pathlib import Path

import click
from sqlalchemy.orm import Session

from server.notify.webhook_states import WebhookEvent
from server.notify.webhooks import OVERLAP_S, DeadLetterRow, WebhookRow
from server.registry.paging import pages

from .listing import limit_option, show_pages
from .options import directory_option, json_option, now, opened, reading, show, utc, writing
from .output import handing_out, out_option

_kinds = click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    help="Send events of this kind, as license.suspended or license.*; may be repeated.",
)


@click.group()
def webhooks() -> None:
    """Send the server's events to other programs over HTTPS."""


@webhooks.command("add")
@directory_option
@click.argument("url")
@_kinds
@out_option
def webhooks_add(directory: Path, url: str, kinds: tuple[str, ...], out: Path | None) -> None:
    """Send events from now on to URL, and print the secret that they are signed with. It is not shown again."""
    lost = "nobody has that secret: run 'license-server webhooks new-secret' for the webhook ('webhooks list' has its id)"
    with handing_out(out, lost) as hand, writing(directory) as (server, session):
        webhook_id, secret = server.webhooks.add(session, url, kinds, now())
        hand(secret)
    click.echo(f"added {webhook_id}; 'license-server webhooks test {webhook_id}' sends it an event", err=True)


@webhooks.command("list")
@directory_option
@json_option
def webhooks_list(directory: Path, as_json: bool) -> None:
    """List webhooks, and how their deliveries go."""

    def line(row: WebhookRow) -> tuple[object, ...]:
        failing = "-" if row.failing_since is None else f"since {utc(row.failing_since)}: {row.problem}"
        return row.webhook_id, row.state, row.url, " ".join(row.kinds), utc(row.last_success), failing, row.dead_letters

    with reading(directory) as (server, session):
        rows = server.webhooks.listed(session)
    show(rows, ("id", "state", "url", "kinds", "last success", "failing", "dead letters"), line, as_json)


@webhooks.command("set")
@directory_option
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option("--url", metavar="URL", help="Send to this URL from now on.")
@_kinds
def webhooks_set(directory: Path, webhook_id: str, url: str | None, kinds: tuple[str, ...]) -> None:
    """Change where a WEBHOOK sends, or what."""
    if url is None and not kinds:
        raise click.UsageError("Nothing to change: give --url or --kind.")
    with writing(directory) as (server, session):
        server.webhooks.change(session, webhook_id, now(), url=url, kinds=kinds or None)


@webhooks.command("new-secret")
@directory_option
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option(
    "--overlap",
    type=click.IntRange(0, 30 * 86_400),
    default=OVERLAP_S,
    show_default=True,
    help="Seconds for which requests are signed with the former secret too; 0 if somebody else has it.",
)
@out_option
def webhooks_new_secret(directory: Path, webhook_id: str, overlap: int, out: Path | None) -> None:
    """Replace the secret of a WEBHOOK and print the new one."""
    with handing_out(out, "nobody has the new secret: run this command again") as hand, writing(directory) as (server, session):
        hand(server.webhooks.new_secret(session, webhook_id, now(), overlap))


@webhooks.command("test")
@directory_option
@click.argument("webhook_id", metavar="WEBHOOK")
def webhooks_test(directory: Path, webhook_id: str) -> None:
    """Send a WEBHOOK an event of the kind webhook.test."""
    with writing(directory) as (server, session):
        server.webhooks.test(session, webhook_id, now())
    click.echo("a running server sends it within seconds; 'license-server webhooks list' shows how that went", err=True)


@webhooks.command("pause")
@directory_option
@click.argument("webhook_id", metavar="WEBHOOK")
def webhooks_pause(directory: Path, webhook_id: str) -> None:
    """Send a WEBHOOK nothing until 'resume', which sends what has happened meanwhile."""
    with writing(directory) as (server, session):
        server.webhooks.step(session, webhook_id, WebhookEvent.PAUSE, now())


@webhooks.command("resume")
@directory_option
@click.argument("webhook_id", metavar="WEBHOOK")
def webhooks_resume(directory: Path, webhook_id: str) -> None:
    """Send to a WEBHOOK again, or at once if it waits for another attempt."""
    with writing(directory) as (server, session):
        server.webhooks.step(session, webhook_id, WebhookEvent.RESUME, now())


@webhooks.command("remove")
@directory_option
@click.argument("webhook_id", metavar="WEBHOOK")
def webhooks_remove(directory: Path, webhook_id: str) -> None:
    """Remove a WEBHOOK and its dead letters."""
    with writing(directory) as (server, session):
        server.webhooks.remove(session, webhook_id, now())


@webhooks.command("dead-letters")
@directory_option
@click.argument("webhook_id", metavar="WEBHOOK")
@limit_option
@json_option
def webhooks_dead_letters(directory: Path, webhook_id: str, limit: int | None, as_json: bool) -> None:
    """List the events that the receiver of a WEBHOOK has not taken."""

    def line(row: DeadLetterRow) -> tuple[object, ...]:
        return row.seq, utc(row.at), row.kind, row.subject, utc(row.died_at), row.problem, "waits" if row.again else ""

    def page(session: Session, last: DeadLetterRow | None, most: int) -> list[DeadLetterRow]:
        return server.webhooks.dead_letters(session, webhook_id, last, most)

    with opened(directory) as server:
        headers = ("event", "happened", "kind", "about", "put aside", "because", "retry")
        show_pages(pages(server.database, page, limit), headers, line, as_json)


@webhooks.command("retry")
@directory_option
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option("--event", "seq", type=click.IntRange(1), metavar="NUMBER", help="This event only, from 'dead-letters'.")
def webhooks_retry(directory: Path, webhook_id: str, seq: int | None) -> None:
    """Send the dead letters of a WEBHOOK once more."""
    with writing(directory) as (server, session):
        count = server.webhooks.retry(session, webhook_id, now(), seq)
    click.echo(f"{count} to send", err=True)


COMMANDS: tuple[click.Command, ...] = (webhooks,)
