"""Commands for agents."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from common.text import quantity, shown
from server.acts.agents.agents import MAX_AGENTS
from server.agents.audit_heads import sign_audit_head
from server.agents.registry import ACTIVE
from server.agents.removal import remove, require_removable
from server.agents.serials import MAX_SERIAL, serials, set_last
from server.agents.server_time import sign_time as sign_server_time
from server.cli.base.acting import asking, listed, perform
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import (
    agent_option,
    confirm,
    directory_option,
    json_option,
    members,
    now,
    reading,
    reason_option,
    utc,
    where_option,
    writing,
    yes_option,
)
from server.cli.base.output import handing_out, out_option, write
from server.licensing.lists.agent_view import AgentView, notes, view
from server.registry.agentcounts import STATUSES

MAX_FILE_CHARS = 128 * 1024
SHOWN = 10
"""Licenses that `agents show` prints; `licenses list` prints all."""


@click.group(invoke_without_command=True)
@where_option
@json_option
@click.pass_context
def agents(ctx: click.Context, directory: Path | None, as_json: bool) -> None:
    """List, show, revoke, retire, reinstate and delete agents. Without a command: list."""
    if ctx.invoked_subcommand is None:
        _list_agents(directory, as_json)


def _list_agents(
    directory: Path | None,
    as_json: bool,
    status: str | None = None,
    prefix: str = "",
    after: str = "",
    limit: int | None = None,
) -> None:
    def line(row: Any) -> tuple[object, ...]:
        serial = "-" if row.serial is None else row.serial
        return row.agent_id, serial, row.status, row.attestation, row.backend, utc(row.created_at), utc(row.last_seen)

    headers = ("agent", "serial", "status", "attestation", "backend", "enrolled at", "last contact")

    pages = listed("agents.list", directory, limit, status=status, prefix=prefix or None, since=after or None)
    show_pages(pages, headers, line, as_json, members)


@agents.command("list")
@where_option
@click.option("--status", type=click.Choice(STATUSES), help="Only agents with this status.")
@click.option("--id-prefix", "prefix", default="", metavar="TEXT", help="Only agents whose id begins with this.")
@click.option("--after", default="", metavar="ID", help="Only agents behind this one.")
@limit_option
@json_option
def agents_list(directory: Path | None, status: str | None, prefix: str, after: str, limit: int | None, as_json: bool) -> None:
    """List agents by id: all of them, or those that the options name."""
    _list_agents(directory, as_json, status, prefix, after, limit)


@agents.command("show")
@directory_option
@click.argument("agent_id")
@json_option
def agents_show(directory: Path, agent_id: str, as_json: bool) -> None:
    """Print everything that is known of an agent, and what needs attention; never a secret."""
    moment = now()
    with reading(directory) as (_server, session):
        found = view(session, agent_id, moment)
    if as_json:
        click.echo(json.dumps(found.as_json(moment), indent=2))
        return
    lines = [f"{name + ':':<14}{value}" for name, value in _facts(found, moment)]
    click.echo(shown("\n".join([*lines, *(f"NOTICE: {note}" for note in notes(found, moment))])))


def _facts(found: AgentView, moment: int) -> Iterator[tuple[str, object]]:
    row = found.agent
    yield "agent", row.agent_id
    yield "serial", "-" if row.serial is None else row.serial
    yield "status", row.shown_status
    yield "hardware", row.hw_id or "-"
    yield "machine kind", found.update_hardware or "-"
    yield "attestation", row.attestation
    yield "backend", row.backend
    yield "enrolled at", utc(row.created_at)
    yield "changed at", utc(row.updated_at)
    if row.retired_at is not None:
        yield "retired at", utc(row.retired_at)
    ago = "" if row.last_seen is None else f" ({_days(moment - row.last_seen)} ago)"
    yield "last contact", utc(row.last_seen) + ago
    yield "halted", "no" if found.halt is None else f"since {utc(found.halt.since)}: {found.halt.evidence}"
    counting = [each for each in found.certificates if each.state == "active" and each.not_after > moment]
    for each in counting:
        used = "in use" if each.used_at is not None else "not used yet"
        yield "certificate", f"{each.number}, {used}, ends {utc(each.not_after)} (in {_days(each.not_after - moment)})"
    if not counting:
        yield "certificate", "-"
    yield "capabilities", ", ".join(found.capabilities) or "those of release 0.1.0"
    yield "secrets", ", ".join(f"{each.version} {each.shown_state(moment)}" for each in found.secrets) or "-"
    for license_ in found.licenses[:SHOWN]:
        yield "license", f"{license_.license_id}, {license_.state.replace('_', ' ')}, until {utc(license_.expires)}"
    if len(found.licenses) > SHOWN:
        yield "licenses", f"{len(found.licenses)} in all; 'license-server licenses list --agent {row.agent_id}' lists them"
    if not found.licenses:
        yield "license", "-"


def _days(seconds: int) -> str:
    days = max(seconds, 0) // 86_400
    return quantity(days, "day") if days else "less than a day"


@agents.command("keys")
@where_option
@click.argument("agent_id")
@click.argument("name", type=click.Choice(["identity", "attestation"]))
@out_option
def agents_keys(directory: Path | None, agent_id: str, name: str, out: Path | None) -> None:
    """Print an agent's public key with this NAME (PEM), as the registry has it.

    'identity' signs the agent's requests and the anchors of its audit log; 'attestation' certifies the log's checkpoints.
    """
    write(perform("agents.show_key", directory, agent_id=agent_id, key=name).pem, out)


@agents.command("assign")
@where_option
@click.argument("agent_id")
@click.argument("site", required=False)
def agents_assign(directory: Path | None, agent_id: str, site: str | None) -> None:
    """Say that an agent's machine is at SITE: it may take seats of the site's floating licenses. Without SITE: at none.

    Seats that it has of another site end at its next contact.
    """
    perform("agents.assign", directory, agent_id=agent_id, site=site)


@agents.command("revoke")
@where_option
@click.argument("agent_id")
def agents_revoke(directory: Path | None, agent_id: str) -> None:
    """Revoke an agent: the server refuses its requests from now on."""
    perform("agents.revoke", directory, agent_id=agent_id)


@agents.command("revoke-many")
@where_option
@click.argument("agent_ids", metavar="[AGENT_ID]...", nargs=-1)
@click.option("--file", type=click.File(), help="A file with more of them, one a line; '-' for standard input.")
def agents_revoke_many(directory: Path | None, agent_ids: tuple[str, ...], file: TextIO | None) -> None:
    """Revoke many agents at once, at most 1000: all of them, or none if one does not exist.

    At a server (--server), another person must approve.
    """
    lines = () if file is None else (line.strip() for line in file.read(MAX_FILE_CHARS).splitlines())
    named = list(dict.fromkeys((*agent_ids, *(line for line in lines if line))))
    if not 1 <= len(named) <= MAX_AGENTS:
        raise click.UsageError(f"{len(named)} agents are named; name 1 to {MAX_AGENTS}")
    done = perform("agents.revoke_many", directory, agent_ids=named)
    click.echo(f"revoked {quantity(done.count, 'agent')}", err=True)


@agents.command("retire")
@where_option
@click.argument("agent_id")
def agents_retire(directory: Path | None, agent_id: str) -> None:
    """Take an agent out of service: the server refuses its requests from now on, and its licenses end.

    'license-server retention --retired-agents DAYS' says how long it stays in the registry; then it goes by itself. Until then,
    'agents reinstate' takes it back into service.
    """
    retired = perform("agents.retire", directory, agent_id=agent_id)
    ended, kept = quantity(retired.licenses, "license"), quantity(retired.kept_days, "day")
    click.echo(
        f"retired {agent_id} with {ended}; it stays in the registry for {kept} after {utc(retired.retired_at)}", err=True
    )


@agents.command("replace")
@where_option
@click.argument("agent_id")
@click.argument("successor")
@yes_option
@reason_option
def agents_replace(directory: Path | None, agent_id: str, successor: str, yes: bool, reason: str) -> None:
    """Replace an agent by the SUCCESSOR on a new machine: its licenses move there, and it retires.

    For a new mainboard: provision the device first, which makes it a new agent. Revoked licenses stay behind.
    """
    with asking(directory) as server:
        for each in (agent_id, successor):
            server.perform("agents.show", agent_id=each)
        confirm(f"{agent_id} leaves service, and {successor} gets its licenses. Continue?", yes=yes)
        done = server.perform("agents.replace", agent_id=agent_id, successor=successor)
    click.echo(f"retired {agent_id}; {successor} gets {quantity(len(done.licenses), 'license')}", err=True)
    for notice in done.notices:
        click.echo(notice, err=True)


@agents.command("reinstate")
@where_option
@click.argument("agent_id")
@yes_option
def agents_reinstate(directory: Path | None, agent_id: str, yes: bool) -> None:
    """Reinstate a revoked or retired agent. Its certificates stay revoked: provision the device again."""
    with asking(directory) as server:
        found = server.perform("agents.show", agent_id=agent_id)
        if found.status == ACTIVE:
            click.echo(f"{agent_id} is active already", err=True)
            return
        confirm(f"{agent_id} is {found.status}. The device will be able to get licenses again. Continue?", yes=yes)
        server.perform("agents.reinstate", agent_id=agent_id, if_match=server.tag("agents.show", found))
    click.echo(
        f"reinstated {agent_id}; its certificates stay revoked, so provision the device again with a new enrollment token: "
        "'license-server enrollment-token make', then 'license-agent-cli provision' on the machine",
        err=True,
    )


@agents.command("delete")
@directory_option
@click.argument("agent_id")
@yes_option
def agents_delete(directory: Path, agent_id: str, yes: bool) -> None:
    """Delete an agent that was revoked or retired, with its certificates, secrets and licenses. The audit keeps what it was.

    'license-server retention --agents DAYS' says how long after its revocation an agent is kept at least.
    """
    with reading(directory) as (_server, session):
        require_removable(session, agent_id, now())
    confirm(f"{agent_id}, its certificates, secrets and licenses go for good. Continue?", yes=yes)
    with writing(directory) as (_server, session):
        removed = remove(session, agent_id, now())
    counts = (
        quantity(removed.certificates, "certificate"), quantity(removed.secrets, "secret version"),
        quantity(removed.licenses, "license"),
    )  # fmt: skip
    click.echo(f"deleted {agent_id}: {', '.join(counts)}", err=True)


@agents.command("serial")
@directory_option
@click.option("--set", "last", type=click.IntRange(0, MAX_SERIAL - 1), metavar="N", help="The last number that a device has.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def agents_serial(directory: Path, last: int | None, yes: bool) -> None:
    """Show which serial number the next new device gets, or repair the counter with --set."""
    with reading(directory) as (_server, session):
        found = serials(session)
    if last is not None:
        if last < found.last and not yes:
            question = (
                f"The counter goes back from {found.last} to {last}. If a device that this registry has lost has one of the "
                "numbers between, another device will get it too. Continue?"
            )
            confirm(question, yes=False)
        with writing(directory) as (_server, session):
            set_last(session, last, now())
            found = serials(session)
    click.echo(f"the next new device gets serial number {found.last + 1}; the greatest in use is {found.in_use}")


@click.command("sign-time")
@directory_option
@agent_option
@click.option("--challenge", required=True, metavar="HEX", help="From 'license-agent-cli clock challenge' on the machine.")
@out_option
def sign_time(directory: Path, agent_id: str, challenge: str, out: Path | None) -> None:
    """Print the server's time, signed, for an agent whose clock is wrong."""
    with handing_out(out) as hand, writing(directory) as (server, session):
        hand(sign_server_time(session, server.keys, agent_id, challenge, now()))


@click.command("audit-head")
@directory_option
@agent_option
@out_option
def audit_head(directory: Path, agent_id: str, out: Path | None) -> None:
    """Print where an agent's audit log stood at its last contact, signed and dated, for an auditor.

    The output has two lines: the statement, and the newest key set, which the root has signed.
    'license-agent-cli audit verify --file LOG --head FILE' compares a copy of the log with it.
    """
    with handing_out(out) as hand, writing(directory) as (server, session):
        hand(f"{sign_audit_head(session, server.keys, agent_id, now())}\n{server.keys.key_set()}")


COMMANDS: tuple[click.Command, ...] = (agents, sign_time, audit_head)
