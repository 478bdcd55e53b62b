"""Commands for agents, enrollment tokens and secrets."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from common.text import shown
from server.agents.audit_heads import sign_audit_head
from server.agents.enrollment_tokens import DEFAULT_LIFETIME_S, EnrollmentTokenRow
from server.agents.registry import ACTIVE, REVOKED, AgentRow, enrolled, public_key_pem, row_of
from server.agents.serials import MAX_SERIAL, serials, set_last
from server.agents.server_time import sign_time as sign_server_time
from server.base.errors import RegistryError
from server.enrollment.by_hand import read_request
from server.licensing import periods as secret_periods
from server.licensing.secrets import SecretRow

from .options import agent_option, directory_option, json_option, now, reading, show, utc, writing
from .output import handing_out, out_option, write


@click.command()
@directory_option
@click.option(
    "--request", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="From 'license-agent init'."
)
def enroll(directory: Path, request: Path) -> None:
    """Register an agent by its enrollment request, for machines without a network."""
    try:
        content = json.loads(request.read_text("utf-8"))
    except ValueError:
        raise RegistryError(f"{request} is not an enrollment request: it is not JSON") from None
    asked = read_request(content)
    with writing(directory) as (server, session):
        server.agents.enroll_by_hand(session, asked.agent_id, asked.hw_id, asked.backend, asked.keys, now())
    click.echo(f"enrolled {asked.agent_id}; next: license-server rotate --agent {asked.agent_id}", err=True)


@click.group("enrollment-token")
def enrollment_token() -> None:
    """Manage the tokens with which devices are provisioned. (Former name: claim.)"""


@enrollment_token.command("make")
@directory_option
@click.option("--hw-id", metavar="HEX", help="The only device that may use it; without it, the first device that does.")
@click.option(
    "--lifetime",
    type=click.IntRange(60, 10**9),
    default=DEFAULT_LIFETIME_S,
    show_default=True,
    help="Seconds until it expires.",
)
@click.option("--factory-only", is_flag=True, help="For factory tests: the agent gets no licenses.")
@out_option
def enrollment_token_make(directory: Path, hw_id: str | None, lifetime: int, factory_only: bool, out: Path | None) -> None:
    """Make a token for one device and print it."""
    if hw_id is not None and (len(hw_id) != 64 or set(hw_id) - set("0123456789abcdef")):
        raise RegistryError("a hardware id has 64 characters 0-9 and a-f; 'license-agent hardware-id' prints it")
    lost = (
        "nobody can use that token; make another, and revoke this one ('license-server enrollment-token list' has its number)"
    )
    with handing_out(out, lost) as hand, writing(directory) as (server, session):
        hand(server.enrollment_tokens.create(session, hw_id, factory_only, lifetime, now()))


@enrollment_token.command("list")
@directory_option
@json_option
def enrollment_token_list(directory: Path, as_json: bool) -> None:
    """List all tokens; never their texts."""

    def line(row: EnrollmentTokenRow) -> tuple[object, ...]:
        return row.claim_id, row.state, row.agent_id or "-", (row.hw_id or "any")[:16], utc(row.created_at), utc(row.expires_at)

    with reading(directory) as (server, session):
        rows = server.enrollment_tokens.listed(session)
    show(rows, ("claim", "state", "agent", "hardware", "made", "ends"), line, as_json)


@enrollment_token.command("revoke")
@directory_option
@click.argument("number", type=click.IntRange(1))
def enrollment_token_revoke(directory: Path, number: int) -> None:
    """Revoke the token with this NUMBER, from the list."""
    with writing(directory) as (server, session):
        server.enrollment_tokens.revoke(session, number, now())


@click.group(invoke_without_command=True)
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), envvar="LICENSE_SERVER_DIR")
@click.pass_context
def agents(ctx: click.Context, directory: Path | None) -> None:
    """List, show, revoke and reinstate agents. Without a command: list."""
    if ctx.invoked_subcommand is None:
        if directory is None:
            raise click.UsageError("Missing option '--dir' (or LICENSE_SERVER_DIR).")
        _list_agents(directory, False)


def _list_agents(directory: Path, as_json: bool) -> None:
    def line(row: AgentRow) -> tuple[object, ...]:
        serial = "-" if row.serial is None else row.serial
        return row.agent_id, serial, row.status, row.attestation, row.backend, utc(row.created_at), utc(row.last_seen)

    headers = ("agent", "serial", "status", "attestation", "backend", "enrolled at", "last contact")
    with reading(directory) as (server, session):
        rows = server.agents.listed(session)
    show(rows, headers, line, as_json)


@agents.command("list")
@directory_option
@json_option
def agents_list(directory: Path, as_json: bool) -> None:
    """List all agents."""
    _list_agents(directory, as_json)


@agents.command("show")
@directory_option
@click.argument("agent_id")
@json_option
def agents_show(directory: Path, agent_id: str, as_json: bool) -> None:
    """Print everything that is known of an agent; never a secret."""
    with reading(directory) as (server, session):
        row = row_of(enrolled(session, agent_id, lock=False))
        versions = server.secrets.listed(session, agent_id)
    if as_json:
        click.echo(json.dumps({**asdict(row), "secrets": [asdict(version) for version in versions]}, indent=2))
        return
    facts = {
        "agent": row.agent_id,
        "serial": "-" if row.serial is None else row.serial,
        "status": row.status,
        "hardware": row.hw_id or "-",
        "attestation": row.attestation,
        "backend": row.backend,
        "enrolled at": utc(row.created_at),
        "changed at": utc(row.updated_at),
        "last contact": utc(row.last_seen),
        "secrets": ", ".join(f"{version.version} {version.state}" for version in versions) or "-",
    }
    click.echo(shown("\n".join(f"{name + ':':<14}{value}" for name, value in facts.items())))


@agents.command("keys")
@directory_option
@click.argument("agent_id")
@click.argument("name", type=click.Choice(["identity", "attestation"]))
@out_option
def agents_keys(directory: Path, agent_id: str, name: str, out: Path | None) -> None:
    """Print an agent's public key with this NAME (PEM), as the registry has it.

    'identity' signs the agent's requests and the anchors of its audit log; 'attestation' certifies the log's checkpoints.
    """
    with reading(directory) as (_server, session):
        text = public_key_pem(session, agent_id, name)
    write(text, out)


@agents.command("revoke")
@directory_option
@click.argument("agent_id")
def agents_revoke(directory: Path, agent_id: str) -> None:
    """Revoke an agent: the server refuses its requests from now on."""
    with writing(directory) as (server, session):
        server.agents.set_status(session, agent_id, REVOKED, now())


@agents.command("reinstate")
@directory_option
@click.argument("agent_id")
@click.confirmation_option(prompt="The device will be able to get licenses again. Continue?")
def agents_reinstate(directory: Path, agent_id: str) -> None:
    """Reinstate a revoked agent. Its certificates stay revoked: provision the device again."""
    with writing(directory) as (server, session):
        server.agents.set_status(session, agent_id, ACTIVE, now())


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
            click.confirm(question, abort=True, err=True)
        with writing(directory) as (_server, session):
            set_last(session, last, now())
            found = serials(session)
    click.echo(f"the next new device gets serial number {found.last + 1}; the greatest in use is {found.in_use}")


@click.group(invoke_without_command=True)
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), envvar="LICENSE_SERVER_DIR")
@click.option("--agent", "agent_id", metavar="ID", help="The agent's id.")
@click.pass_context
def secrets(ctx: click.Context, directory: Path | None, agent_id: str | None) -> None:
    """List an agent's secret versions and their dates, never a secret. Without a command: list."""
    if ctx.invoked_subcommand is None:
        if directory is None or agent_id is None:
            raise click.UsageError("Missing option '--dir' (or LICENSE_SERVER_DIR) or '--agent'.")
        _list_secrets(directory, agent_id, False)


def _list_secrets(directory: Path, agent_id: str, as_json: bool) -> None:
    def line(row: SecretRow) -> tuple[object, ...]:
        return row.version, row.state, utc(row.valid_from), utc(row.valid_until), utc(row.grace_until)

    with reading(directory) as (server, session):
        rows = server.secrets.listed(session, agent_id)
    show(rows, ("version", "state", "valid from", "valid until", "grace until"), line, as_json)


@secrets.command("list")
@directory_option
@agent_option
@json_option
def secrets_list(directory: Path, agent_id: str, as_json: bool) -> None:
    """List an agent's secret versions; never a secret."""
    _list_secrets(directory, agent_id, as_json)


@secrets.command("rotate")
@directory_option
@click.option("--agent", "agent_id", metavar="ID", help="This agent.")
@click.option("--all", "everyone", is_flag=True, help="All agents.")
def secrets_rotate(directory: Path, agent_id: str | None, everyone: bool) -> None:
    """Make agents rotate their secrets at their next contact."""
    if (agent_id is None) != everyone:
        raise click.UsageError("Name one agent with --agent, or all with --all.")
    with writing(directory) as (server, session):
        count = server.secrets.demand(session, agent_id, now())
    click.echo(f"{count} agents will rotate at their next contact", err=True)


@secrets.command("invalidate")
@directory_option
@agent_option
@click.argument("version", type=click.IntRange(1))
def secrets_invalidate(directory: Path, agent_id: str, version: int) -> None:
    """Destroy an agent's secret VERSION on the server. The agent rotates at its next contact."""
    with writing(directory) as (server, session):
        server.secrets.invalidate(session, agent_id, version, now())


@click.command()
@directory_option
@agent_option
@click.option("--interval", type=click.IntRange(1, 10**9), help="Seconds until the next one is due.  [default: the server's]")
@click.option("--grace", type=click.IntRange(0, 10**9), help="Seconds of grace after that.  [default: the server's]")
@out_option
def rotate(directory: Path, agent_id: str, interval: int | None, grace: int | None, out: Path | None) -> None:
    """Make an agent's next secret and print its delivery, signed and encrypted to the agent, to be carried by hand."""
    with handing_out(out) as hand, writing(directory) as (server, session):
        hand(server.secrets.rotate_by_hand(session, agent_id, now(), interval, grace))


@click.command()
@directory_option
@click.option("--interval", type=click.IntRange(1, 10**9), help="Seconds until a secret's successor is due.")
@click.option("--grace", type=click.IntRange(0, 10**9), help="Seconds of grace after that.")
@click.option("--revocations", type=click.IntRange(1, 10**9), help="Seconds for which a revocation list is valid.")
def periods(directory: Path, interval: int | None, grace: int | None, revocations: int | None) -> None:
    """Show how long secrets and revocation lists are valid, or change it for those that are made from now on."""
    if any(value is not None for value in (interval, grace, revocations)):
        with writing(directory) as (_server, session):
            secret_periods.set_periods(session, interval, grace, now(), revocations)
    with reading(directory) as (_server, session):
        found, lists = secret_periods.periods(session), secret_periods.revocations_last(session)
    click.echo(f"a successor is due after {found[0]} s; licenses under the old one pass for {found[1]} s more")
    click.echo(f"a revocation list is valid for {lists} s")


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


COMMANDS: tuple[click.Command, ...] = (enroll, enrollment_token, agents, secrets, rotate, periods, sign_time, audit_head)
