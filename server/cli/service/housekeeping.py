"""Commands for what the registry keeps, and for how long."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from common.text import quantity
from server.cli.base.options import changing, directory_option, json_option, now, opened, writing
from server.registry.upkeep.retention import Retention, set_retention
from server.registry.upkeep.retention import retention as present_retention
from server.wiring import housekeeping

_DEFAULT = Retention()
_TEXTS = {
    "audit": "audit records, after they were written",
    "certificates": "client certificates, after their end",
    "secrets": "secret versions, after the end of their grace",
    "enrollment_tokens": "enrollment tokens, after their end",
    "events": "events of the feed, after they happened",
    "usage": "usage by day, after that day",
    "agents": "revoked agents, at least, after they were revoked ('agents delete' removes them)",
    "retired_agents": "retired agents, after they retired",
}


@click.command()
@directory_option
@click.option(
    "--audit", type=click.IntRange(0), metavar="DAYS", help=f"Days for audit records; 0: for ever.  [default: {_DEFAULT.audit}]"
)
@click.option(
    "--certificates",
    type=click.IntRange(0),
    metavar="DAYS",
    help=f"Days for client certificates that have ended.  [default: {_DEFAULT.certificates}]",
)
@click.option(
    "--secrets",
    type=click.IntRange(0),
    metavar="DAYS",
    help=f"Days for secret versions whose grace has ended.  [default: {_DEFAULT.secrets}]",
)
@click.option(
    "--enrollment-tokens",
    type=click.IntRange(0),
    metavar="DAYS",
    help=f"Days for enrollment tokens that have ended.  [default: {_DEFAULT.enrollment_tokens}]",
)
@click.option(
    "--agents",
    type=click.IntRange(0),
    metavar="DAYS",
    help=f"Days for revoked agents, before 'agents delete' may remove them.  [default: {_DEFAULT.agents}]",
)
@click.option(
    "--retired-agents",
    type=click.IntRange(0),
    metavar="DAYS",
    help=f"Days for retired agents, before they go by themselves.  [default: {_DEFAULT.retired_agents}]",
)
@click.option(
    "--events", type=click.IntRange(0), metavar="DAYS", help=f"Days for events of the feed.  [default: {_DEFAULT.events}]"
)
@click.option(
    "--usage", type=click.IntRange(0), metavar="DAYS", help=f"Days for usage that was reported.  [default: {_DEFAULT.usage}]"
)
@click.option("--apply", "at_once", is_flag=True, help="Remove what is due now; a running 'serve' does so every 10 minutes.")
@json_option
def retention(
    directory: Path,
    audit: int | None,
    certificates: int | None,
    secrets: int | None,
    enrollment_tokens: int | None,
    agents: int | None,
    retired_agents: int | None,
    events: int | None,
    usage: int | None,
    at_once: bool,
    as_json: bool,
) -> None:
    """Show how long the registry keeps rows that nothing needs any more, or change it."""
    given = {
        "audit": audit,
        "certificates": certificates,
        "secrets": secrets,
        "enrollment_tokens": enrollment_tokens,
        "agents": agents,
        "retired_agents": retired_agents,
        "events": events,
        "usage": usage,
    }
    changes = {name: days for name, days in given.items() if days is not None}
    if changes:
        with writing(directory) as (_server, session):
            set_retention(session, changes, now())
    removed: dict[str, int] = {}
    with changing(directory) if at_once else opened(directory) as server:
        if at_once:
            removed = housekeeping(server).run(now(), confirmed=True).rows
        with server.database.read() as session:
            days = asdict(present_retention(session))
    if as_json:
        click.echo(json.dumps({"days": days, "removed": removed}, indent=2))
        return
    for name, text in _TEXTS.items():
        click.echo(f"{text}: {quantity(days[name], 'day') if days[name] else 'for ever'}")
    for table, count in removed.items():
        click.echo(f"removed from {table}: {count} rows", err=True)


COMMANDS: tuple[click.Command, ...] = (retention,)
