"""Commands that order agents to install packages. They ask the operator API, or work on this machine."""

from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from common.text import shown

from ..base.acting import listed, perform
from ..base.listing import limit_option, show_pages
from ..base.options import TimeType, confirm, json_option, members, utc, where_option, yes_option, zone_option
from ..base.windows import NoticeType, window_of


@click.command("packages")
@where_option
@click.option("--product", metavar="NAME", help="Only those of this product.")
@limit_option
@json_option
def list_packages(directory: Path | None, product: str | None, limit: int | None, as_json: bool) -> None:
    """List the packages that are published, or were."""

    def line(row: Any) -> tuple[object, ...]:
        return row.path, row.version, row.build_id, row.role, ", ".join(row.hardware), row.length, utc(row.published_at)

    headers = ("package", "version", "build", "role", "hardware", "bytes", "published")
    show_pages(listed("updates.packages", directory, limit, product=product), headers, line, as_json, members)


@click.command("assign")
@where_option
@click.argument("agent")
@click.argument("target")
@click.option("--window", callback=window_of, metavar="TEXT", help="When it may begin: 'mon-fri 22:00-05:00 Europe/Berlin'.")
@zone_option
@click.option("--not-before", type=TimeType(), metavar="TIME", help="It is not installed earlier.  [default: now]")
@click.option("--not-after", type=TimeType(ends=True), metavar="TIME", help="It is not installed later.  [default: 30 days on]")
@click.option(
    "--notice", type=NoticeType(), default="2d", show_default=True, help="How long it is announced before; 0 for none."
)
@click.option("--candidate", is_flag=True, help="TARGET may be a candidate: try it on this machine.")
@click.option("--replace", is_flag=True, help="Take the place of what the agent is ordered to install now.")
@click.option("--downgrade", is_flag=True, help="TARGET may be older than what runs; a second person must approve.")
@json_option
def assign(
    directory: Path | None,
    agent: str,
    target: str,
    window: dict[str, Any] | None,
    zone: object,
    not_before: int | None,
    not_after: int | None,
    notice: int,
    candidate: bool,
    replace: bool,
    downgrade: bool,
    as_json: bool,
) -> None:
    """Order AGENT to install the package TARGET. It learns so at its next contact."""
    row = perform(
        "updates.downgrade" if downgrade else "updates.assign", directory, agent_id=agent, target=target, window=window,
        not_before=not_before, not_after=not_after, notice=notice, candidate=candidate, replace=replace,
    )  # fmt: skip
    if as_json:
        click.echo(row.model_dump_json(indent=2))
        return
    click.echo(
        shown(
            f"directive {row.number}: agent {agent} installs {row.product} {row.version} (build {row.build_id}), not before "
            f"{utc(max(row.not_before, row.notice_until))}, not after {utc(row.not_after)}"
        ),
        err=True,
    )
    if row.hardware is None:
        text = (
            f"which hardware agent {agent} has is not known: it refuses a package for other hardware when it has learned of it"
        )
        text = f"the hardware of agent {agent} is not known yet: it refuses a package for other hardware"
        click.echo(shown(text), err=True)


@click.command("withdraw")
@where_option
@click.argument("agent")
def withdraw(directory: Path | None, agent: str) -> None:
    """Take back what AGENT is ordered to install. What it has switched to already is finished."""
    row = perform("updates.withdraw", directory, agent_id=agent)
    click.echo(shown(f"directive {row.number} withdraws directive {row.withdraws} for {row.target}"), err=True)


def _pause(directory: Path | None, agent: str | None, act: str) -> None:
    if agent is None:
        perform(f"updates.{act}_all", directory)
    else:
        perform(f"updates.{act}", directory, agent_id=agent)


@click.command("pause")
@where_option
@click.argument("agent", required=False)
@yes_option
def pause(directory: Path | None, agent: str | None, yes: bool) -> None:
    """Pause the updates of AGENT, or of all agents: they begin nothing new from their next contact on."""
    if agent is None:
        confirm("This pauses the updates of all agents. Continue?", yes=yes)
    _pause(directory, agent, "pause")


@click.command("resume")
@where_option
@click.argument("agent", required=False)
def resume(directory: Path | None, agent: str | None) -> None:
    """Let the updates of AGENT go on, or those of all agents that are not paused alone."""
    _pause(directory, agent, "resume")


@click.command("status")
@where_option
@click.argument("agent")
@json_option
def status(directory: Path | None, agent: str, as_json: bool) -> None:
    """Show what AGENT runs, what it was ordered to install, and how far that is."""
    found = perform("updates.show", directory, agent_id=agent)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    click.echo(shown(f"agent {found.agent_id}: last report {utc(found.reported_at)}{', paused' if found.paused else ''}"))
    click.echo(shown(f"hardware {found.hardware or '-'}"))
    for each in found.running:
        click.echo(shown(f"runs {each.product} {each.version}, build {each.build_id}"))
    headers = ("directive", "package", "version", "state", "since", "not before", "not after", "detail")
    rows = [
        (
            row.number, row.target if row.withdraws is None else f"withdraws {row.withdraws}", row.version, row.state,
            utc(row.updated_at), utc(max(row.not_before, row.notice_until)), utc(row.not_after), row.detail,
        )
        for row in found.directives
    ]  # fmt: skip
    if rows:
        click.echo(shown(tabulate(rows, headers=headers, disable_numparse=True)))


COMMANDS: tuple[click.Command, ...] = (list_packages, assign, withdraw, pause, resume, status)
