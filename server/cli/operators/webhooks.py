"""Commands for webhooks."""

from pathlib import Path
from typing import Any

import click

from server.cli.base.acting import listed, perform
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import json_option, members, show, utc, where_option
from server.cli.base.output import handing_out, out_option, taking
from server.notify.webhooks import OVERLAP_S

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
@where_option
@click.argument("url")
@_kinds
@out_option
def webhooks_add(directory: Path | None, url: str, kinds: tuple[str, ...], out: Path | None) -> None:
    """Send events from now on to URL, and print the secret that they are signed with. It is not shown again."""
    lost = "nobody has that secret: run 'license-server webhooks new-secret' for the webhook ('webhooks list' has its id)"
    with handing_out(out, lost) as hand:
        made = perform("webhooks.add", directory, taking(hand, "secret"), url=url, kinds=kinds)
    click.echo(f"added {made.webhook_id}; 'license-server webhooks test {made.webhook_id}' sends it an event", err=True)


@webhooks.command("list")
@where_option
@json_option
def webhooks_list(directory: Path | None, as_json: bool) -> None:
    """List webhooks, and how their deliveries go."""

    def line(row: Any) -> tuple[object, ...]:
        failing = "-" if row.failing_since is None else f"since {utc(row.failing_since)}: {row.problem}"
        return row.webhook_id, row.state, row.url, " ".join(row.kinds), utc(row.last_success), failing, row.dead_letters

    headers = ("id", "state", "url", "kinds", "last success", "failing", "dead letters")
    show(perform("webhooks.list", directory).items, headers, line, as_json, members)


@webhooks.command("set")
@where_option
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option("--url", metavar="URL", help="Send to this URL from now on.")
@_kinds
def webhooks_set(directory: Path | None, webhook_id: str, url: str | None, kinds: tuple[str, ...]) -> None:
    """Change where a WEBHOOK sends, or what."""
    if url is None and not kinds:
        raise click.UsageError("Nothing to change: give --url or --kind.")
    perform("webhooks.change", directory, webhook_id=webhook_id, url=url, kinds=kinds or None)


@webhooks.command("new-secret")
@where_option
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option(
    "--overlap",
    type=click.IntRange(0, 30 * 86_400),
    default=OVERLAP_S,
    show_default=True,
    help="Seconds for which requests are signed with the former secret too; 0 if somebody else has it.",
)
@out_option
def webhooks_new_secret(directory: Path | None, webhook_id: str, overlap: int, out: Path | None) -> None:
    """Replace the secret of a WEBHOOK and print the new one."""
    with handing_out(out, "nobody has the new secret: run this command again") as hand:
        taken = taking(hand, "secret")
        perform("webhooks.new_secret", directory, taken, webhook_id=webhook_id, overlap_s=overlap)


@webhooks.command("test")
@where_option
@click.argument("webhook_id", metavar="WEBHOOK")
def webhooks_test(directory: Path | None, webhook_id: str) -> None:
    """Send a WEBHOOK an event of the kind webhook.test."""
    perform("webhooks.test", directory, webhook_id=webhook_id)
    click.echo("a running server sends it within seconds; 'license-server webhooks list' shows how that went", err=True)


@webhooks.command("pause")
@where_option
@click.argument("webhook_id", metavar="WEBHOOK")
def webhooks_pause(directory: Path | None, webhook_id: str) -> None:
    """Send a WEBHOOK nothing until 'resume', which sends what has happened meanwhile."""
    perform("webhooks.pause", directory, webhook_id=webhook_id)


@webhooks.command("resume")
@where_option
@click.argument("webhook_id", metavar="WEBHOOK")
def webhooks_resume(directory: Path | None, webhook_id: str) -> None:
    """Send to a WEBHOOK again, or at once if it waits for another attempt."""
    perform("webhooks.resume", directory, webhook_id=webhook_id)


@webhooks.command("remove")
@where_option
@click.argument("webhook_id", metavar="WEBHOOK")
def webhooks_remove(directory: Path | None, webhook_id: str) -> None:
    """Remove a WEBHOOK and its dead letters."""
    perform("webhooks.remove", directory, webhook_id=webhook_id)


@webhooks.command("dead-letters")
@where_option
@click.argument("webhook_id", metavar="WEBHOOK")
@limit_option
@json_option
def webhooks_dead_letters(directory: Path | None, webhook_id: str, limit: int | None, as_json: bool) -> None:
    """List the events that the receiver of a WEBHOOK has not taken."""

    def line(row: Any) -> tuple[object, ...]:
        return row.seq, utc(row.at), row.kind, row.subject, utc(row.died_at), row.problem, "waits" if row.again else ""

    headers = ("event", "happened", "kind", "about", "put aside", "because", "retry")
    pages = listed("webhooks.list_dead_letters", directory, limit, webhook_id=webhook_id)
    show_pages(pages, headers, line, as_json, members)


@webhooks.command("retry")
@where_option
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option("--event", "seq", type=click.IntRange(1), metavar="NUMBER", help="This event only, from 'dead-letters'.")
def webhooks_retry(directory: Path | None, webhook_id: str, seq: int | None) -> None:
    """Send the dead letters of a WEBHOOK once more."""
    done = perform("webhooks.retry", directory, webhook_id=webhook_id, seq=seq)
    click.echo(f"{done.count} to send", err=True)


COMMANDS: tuple[click.Command, ...] = (webhooks,)
